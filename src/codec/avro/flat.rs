//! Flat records: the row's columns, then what is added, each in a union with null.

use super::encode::Encoder;
use super::{push_bytes, push_long};
use crate::codec::RecordBuf;
use crate::codec::flat::Value;
use crate::error::Result;
use crate::record::Side;
use crate::value::Row;

/// First and second branch of a union, zig-zag; null is the first.
const NULL: u8 = 0;
const SOME: u8 = 2;

impl Encoder {
    pub(in crate::codec) fn flat<'v>(
        &self,
        side: Side,
        row: Row<'_>,
        added: impl Iterator<Item = Value<'v>>,
        out: &mut RecordBuf,
    ) -> Result<()> {
        self.begin(out);
        self.row(side, row, out)?;
        for value in added {
            match value {
                Value::Null => out.value.push(NULL),
                Value::Integer(number) => {
                    out.value.push(SOME);
                    push_long(&mut out.value, number);
                }
                Value::Text(text) => {
                    out.value.push(SOME);
                    push_bytes(&mut out.value, text.as_bytes());
                }
            }
        }
        Ok(())
    }
}
