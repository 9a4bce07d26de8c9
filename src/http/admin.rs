//! The admin socket: what `lockstep resync` asks for, for programs on this machine.
//!
//! A Unix socket and never a port, because whoever asks for rows makes work at the source: its file may be opened by the user
//! that this process runs as and by nobody else, which is all there is of a login. It is off unless `http.admin` names a path.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /snapshot/pause`, `/snapshot/resume` | none | the same |
//! | `POST /snapshot/stop` | none, or `{"tables": ["s.t"]}` | the same |
//! | `POST /resync` | `{"table": "s.t", "sink": "orders", "where": "id = 5"}`, the last two optional; or `{"all": true}` | 200 with the requests and their ledger entries |
//!
//! What can't be done as it was asked is 400, what could not be reached is 503, each with a code, a message and a hint. A request
//! that was answered stands in the ledger: it outlives this process, and the source role of whichever one answers it.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State as With};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{HEAD_TIMEOUT, connection, harden};
use crate::error::{Code, Error, Result};

/// Programs of one machine that ask at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 8;
/// A table, a sink and a condition, which has a limit of its own.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resync {
    pub table: Option<String>,
    #[serde(default)]
    pub all: bool,
    pub sink: Option<String>,
    pub r#where: Option<String>,
}

/// Tables that are to be read no further.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stop {
    #[serde(default)]
    tables: Vec<String>,
}

/// What one request of a program is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    Resync(Resync),
    /// Of the reading of existing rows.
    Pause,
    Resume,
    /// Names of tables; none: all that are being read.
    Stop(Vec<String>),
}

/// A request that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Asked {
    pub id: String,
    /// Empty: of no sink, for the tables' topics.
    pub sink: String,
    pub tables: Vec<String>,
    pub ledger_entry: i64,
}

/// Writes requests; it may block.
pub type Asking = Arc<dyn Fn(Wanted) -> Result<Vec<Asked>> + Send + Sync>;

/// The socket; its file goes with it.
pub struct Admin {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Admin {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Takes the socket. One that a process left that is gone is replaced.
pub fn bind(path: &Path) -> Result<Admin> {
    let refused = |what: String, hint: &str| {
        Error::halt(Code::Config, format!("http.admin = \"{}\" {what}", path.display()), hint)
    };
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(refused(
            "is in use by another program".to_owned(),
            "stop that program, or set another [http] admin",
        ));
    }
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.permissions().mode() & 0o170_000 != 0o140_000) {
        return Err(refused("exists and is no socket".to_owned(), "set another [http] admin in lockstep.toml"));
    }
    let listener = private(path).map_err(|error| {
        refused(format!("can't be listened on: {error}"), "set another [http] admin: a path in a folder of this user's")
    })?;
    Ok(Admin { listener, path: path.to_owned() })
}

/// Made where nobody else can come and given its place only once nobody else may open it.
fn private(path: &Path) -> std::io::Result<UnixListener> {
    let mut dir = path.as_os_str().to_owned();
    dir.push(format!(".{}", std::process::id()));
    let dir = PathBuf::from(dir);
    DirBuilder::new().mode(0o700).create(&dir)?;
    let made = (|| {
        let socket = dir.join("s");
        let listener = UnixListener::bind(&socket)?;
        std::fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        std::fs::rename(&socket, path)?;
        Ok(listener)
    })();
    let _ = std::fs::remove_dir_all(&dir);
    made
}

impl Admin {
    /// Answers until the token is cancelled.
    pub async fn serve(self, asking: Asking, token: CancellationToken) {
        let router = Router::new()
            .route("/resync", post(resync))
            .route("/snapshot/pause", post(pause))
            .route("/snapshot/resume", post(resume))
            .route("/snapshot/stop", post(stop))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(axum::middleware::map_response(harden))
            .with_state(asking);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                    Ok((stream, _)) => drop(connections.spawn(connection(stream, router.clone(), HEAD_TIMEOUT, token.clone()))),
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
                },
            }
        }
        while connections.join_next().await.is_some() {}
    }
}

async fn resync(With(asking): With<Asking>, body: Result<axum::Json<Resync>, JsonRejection>) -> Response {
    let wanted = match body {
        Ok(axum::Json(Resync { table: None, all: false, .. })) => Err(refused("no table is named".to_owned())),
        Ok(axum::Json(Resync { table: Some(_), all: true, .. })) => Err(refused("a table and all of them".to_owned())),
        Ok(axum::Json(resync)) => Ok(Wanted::Resync(resync)),
        Err(rejection) => Err(refused(rejection.body_text())),
    };
    answer(asking, wanted).await
}

async fn pause(With(asking): With<Asking>) -> Response {
    answer(asking, Ok(Wanted::Pause)).await
}

async fn resume(With(asking): With<Asking>) -> Response {
    answer(asking, Ok(Wanted::Resume)).await
}

async fn stop(With(asking): With<Asking>, body: Bytes) -> Response {
    let tables = match body.is_empty() {
        true => Ok(Vec::new()),
        false => serde_json::from_slice(&body).map(|Stop { tables }| tables),
    };
    let hint = "POST /snapshot/stop with nothing, or with {\"tables\": [\"schema.table\"]}";
    let tables = tables.map_err(|e| Error::halt(Code::RequestRefused, format!("the body can't be read: {e}"), hint));
    answer(asking, tables.map(Wanted::Stop)).await
}

async fn answer(asking: Asking, wanted: Result<Wanted>) -> Response {
    let asked = match wanted {
        Ok(wanted) => {
            let joined = tokio::task::spawn_blocking(move || asking(wanted)).await;
            joined.unwrap_or_else(|e| Err(Error::retry("asking", e)))
        }
        Err(error) => Err(error),
    };
    match asked {
        Ok(requests) => axum::Json(json!({"requests": requests})).into_response(),
        Err(Error::Halt(halt)) => {
            let status = match halt.code {
                Code::RequestRefused => StatusCode::BAD_REQUEST,
                _ => StatusCode::CONFLICT,
            };
            let error = json!({"code": halt.code.as_str(), "message": halt.message, "hint": halt.hint});
            (status, axum::Json(json!({"error": error}))).into_response()
        }
        Err(error) => {
            let error = json!({"code": null, "message": error.chain(), "hint": "ask again"});
            (StatusCode::SERVICE_UNAVAILABLE, axum::Json(json!({"error": error}))).into_response()
        }
    }
}

fn refused(message: String) -> Error {
    let hint =
        "POST /resync with {\"table\": \"schema.table\", \"sink\": \"NAME\", \"where\": \"RANGE\"} as application/json";
    Error::halt(Code::RequestRefused, message, hint)
}
