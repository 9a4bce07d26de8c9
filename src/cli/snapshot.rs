//! `lockstep snapshot`: pauses the reading of existing rows and lets it go on.

use std::sync::Arc;

use clap::{Args, Subcommand};

use super::{ConfigArgs, Failure};
use crate::capture::steering::{self, Steer};

/// Pause the reading of existing rows, let it go on, or leave what topics were to have once more
///
/// Writes a request into the ledger. What streams goes on meanwhile. Tables whose rows are still to come stay as they are: a
/// sink is not equal (`phase` is snapshot or reread) until they have.
#[derive(Args)]
pub struct SnapshotArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Nothing is read until `resume`, whatever is asked for and however often the source role starts
    Pause,
    /// What is still to be read is read
    Resume,
    /// Topics without a sink keep what they have of these tables; what a sink is to have can't be left in the middle
    Stop {
        /// Tables at the source, as schema.table [default: all that are being read]
        #[arg(value_name = "TABLE")]
        tables: Vec<String>,
    },
}

pub fn run(args: &SnapshotArgs) -> Result<u8, Failure> {
    let config = Arc::new(super::load_own(&args.config.config, "snapshot")?);
    let steer = match &args.what {
        What::Pause => Steer::Pause,
        What::Resume => Steer::Resume,
        What::Stop { tables } => Steer::Stop(tables.clone()),
    };
    let (offset, request) = super::block_on(steering::steer(&config, &steer, "lockstep snapshot"))?;
    let tables: Vec<String> = request.tables.iter().map(ToString::to_string).collect();
    let what = match &args.what {
        What::Pause => "existing rows are not read until lockstep snapshot resume".to_owned(),
        What::Resume => "existing rows are read".to_owned(),
        What::Stop { .. } => format!("not read to the end: {}", tables.join(", ")),
    };
    super::print(&format!("{what} (ledger entry {offset})\n"))?;
    Ok(0)
}
