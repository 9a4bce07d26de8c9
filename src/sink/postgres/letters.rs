//! Letters in a Postgres: [`crate::sink::letters`].

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::{PostgresSink, Transaction};
use crate::error::{Code, Error, Result};
use crate::kafka::reread::Bytes;
use crate::lsn::Position;
use crate::relation::TableName;
use crate::session::classify;
use crate::sink::Outcome;
use crate::sink::letters::{CREATE_TABLE, FORMAT, Held, Letter, LetterKey, Reason, Spot};
use crate::sink::refusal::failure;

const NAMED: &str = "p.pipeline = $1 AND p.sink = $2";
const OF_KEY: &str = "p.table_schema = $3 AND p.table_name = $4 AND p.key = $5 AND p.settled_at IS NULL";
const COLUMNS: &str = "p.topic, p.partition, p.\"offset\", p.table_schema, p.table_name, p.key, p.commit_lsn::text, p.ordinal, \
    p.record_key, p.record_value, p.header_names, p.header_values, p.code, p.sqlstate, p.column_name, p.reason, \
    extract(epoch FROM p.parked_at)::int8";
/// Of records that are copied at once, unless one has more.
const COPY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A record that is parked once more; or, where its topic was made again, another one.
const ANOTHER: &str = "settled_at = NULL, asked_at = NULL, copied_at = NULL, letter = DEFAULT, parked_at = excluded.parked_at, \
    table_schema = excluded.table_schema, table_name = excluded.table_name, key = excluded.key, \
    commit_lsn = excluded.commit_lsn, ordinal = excluded.ordinal, record_key = excluded.record_key, \
    record_value = excluded.record_value, header_names = excluded.header_names, header_values = excluded.header_values, \
    code = excluded.code, sqlstate = excluded.sqlstate, column_name = excluded.column_name, reason = excluded.reason";
/// Of these records.
const AMONG: &str =
    "(p.topic, p.partition, p.\"offset\") IN (SELECT * FROM unnest($3::text[], $4::int4[], $5::int8[]))";

fn parse(row: &Row) -> Result<Letter> {
    let lsn: String = row.get(6);
    let lsn = lsn.parse().map_err(|_| {
        Error::halt(Code::ProgressMismatch, "a row of lockstep.parked has no position", "TABLE lockstep.parked")
    })?;
    let (names, values): (Vec<String>, Vec<Option<Vec<u8>>>) = (row.get(10), row.get(11));
    Ok(Letter {
        spot: Spot { topic: row.get(0), partition: row.get(1), offset: row.get(2) },
        of: LetterKey { table: TableName::new(row.get::<_, String>(3), row.get::<_, String>(4)), key: row.get(5) },
        position: Position::new(lsn, row.get::<_, i64>(7).cast_unsigned()),
        record: Bytes { key: row.get(8), value: row.get(9), headers: names.into_iter().zip(values).collect() },
        reason: Reason { code: row.get(12), sqlstate: row.get(13), column: row.get(14), message: row.get(15) },
        parked_at: row.get(16),
    })
}

impl PostgresSink {
    /// A table that this role may not read is of other sinks.
    pub(super) async fn has_letters(&mut self) -> Result<bool> {
        let sql = "SELECT CASE WHEN pg_catalog.to_regclass('lockstep.parked') IS NULL THEN false \
                               ELSE pg_catalog.has_table_privilege('lockstep.parked', 'SELECT') END";
        let found = self.client.query_one(sql, &[]).await;
        Ok(found.map_err(|error| classify("looking for lockstep.parked", error))?.get(0))
    }

    pub(super) async fn prepare_letters(&mut self, create: bool) -> Result<()> {
        self.prepare_table("lockstep.parked", CREATE_TABLE, create).await
    }

    pub(super) async fn held_letters(&mut self) -> Result<Vec<Held>> {
        let sql = format!(
            "SELECT p.table_schema, p.table_name, p.key, count(*), bool_or(p.asked_at IS NOT NULL), \
                    (array_agg(p.code ORDER BY p.letter))[1], (array_agg(p.sqlstate ORDER BY p.letter))[1], \
                    (array_agg(p.column_name ORDER BY p.letter))[1], (array_agg(p.reason ORDER BY p.letter))[1], \
                    extract(epoch FROM min(p.parked_at))::int8 \
               FROM lockstep.parked p WHERE {NAMED} AND p.settled_at IS NULL GROUP BY 1, 2, 3 ORDER BY min(p.letter)"
        );
        let found = self.client.query(&sql, &[&self.name.pipeline, &self.name.sink]).await;
        let found = found.map_err(|error| classify("reading lockstep.parked", error))?;
        let held = |row: &Row| Held {
            of: LetterKey { table: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)), key: row.get(2) },
            letters: row.get::<_, i64>(3).cast_unsigned(),
            asked: row.get(4),
            reason: Reason { code: row.get(5), sqlstate: row.get(6), column: row.get(7), message: row.get(8) },
            parked_at: row.get(9),
        };
        Ok(found.iter().map(held).collect())
    }

    pub(super) async fn letters_of(&mut self, of: &LetterKey) -> Result<Vec<Letter>> {
        let sql = format!("SELECT {COLUMNS} FROM lockstep.parked p WHERE {NAMED} AND {OF_KEY} ORDER BY p.letter");
        let (pipeline, sink) = (&self.name.pipeline, &self.name.sink);
        let found = self.client.query(&sql, &[pipeline, sink, &of.table.schema, &of.table.table, &of.key]).await;
        found.map_err(|error| classify("reading lockstep.parked", error))?.iter().map(parse).collect()
    }

    pub(super) async fn uncopied_letters(&mut self, most: i64) -> Result<Vec<Letter>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM ( \
                 SELECT *, sum(coalesce(octet_length(record_value), 0)) OVER (ORDER BY letter) AS bytes, \
                        row_number() OVER (ORDER BY letter) AS place \
                   FROM (SELECT * FROM lockstep.parked p WHERE {NAMED} AND p.copied_at IS NULL ORDER BY letter LIMIT $3) u \
             ) p WHERE p.place = 1 OR p.bytes <= {COPY_BYTES_MAX} ORDER BY p.letter"
        );
        let found = self.client.query(&sql, &[&self.name.pipeline, &self.name.sink, &most]).await;
        found.map_err(|error| classify("reading lockstep.parked", error))?.iter().map(parse).collect()
    }

    pub(super) async fn letters_copied(&mut self, spots: &[Spot]) -> Result<()> {
        let topics: Vec<&str> = spots.iter().map(|spot| spot.topic.as_str()).collect();
        let numbers: Vec<i32> = spots.iter().map(|spot| spot.partition).collect();
        let offsets: Vec<i64> = spots.iter().map(|spot| spot.offset).collect();
        let (pipeline, sink) = (&self.name.pipeline, &self.name.sink);
        let copied = format!(
            "UPDATE lockstep.parked p SET copied_at = clock_timestamp() WHERE {NAMED} AND {AMONG} AND p.copied_at IS NULL"
        );
        let done = self.client.execute(&copied, &[pipeline, sink, &topics, &numbers, &offsets]).await;
        done.map(drop).map_err(|error| classify("writing lockstep.parked", error))
    }

    pub(super) async fn forget_letters(&mut self) -> Result<()> {
        let gone = format!(
            "DELETE FROM lockstep.parked p WHERE {NAMED} AND p.settled_at IS NOT NULL AND p.copied_at IS NOT NULL"
        );
        let done = self.client.execute(&gone, &[&self.name.pipeline, &self.name.sink]).await;
        done.map(drop).map_err(|error| classify("writing lockstep.parked", error))
    }

    pub(super) async fn keep_letter(&mut self, letter: &Letter) -> Outcome<()> {
        self.assert_open();
        let sql = format!(
            "INSERT INTO lockstep.parked (pipeline, sink, topic, partition, \"offset\", table_schema, table_name, key, commit_lsn, \
                    ordinal, record_key, record_value, header_names, header_values, code, sqlstate, column_name, reason, parked_at, format) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::pg_lsn, $10, $11, $12, $13, $14, $15, $16, $17, $18, clock_timestamp(), {FORMAT}) \
             ON CONFLICT (pipeline, sink, topic, partition, \"offset\") DO UPDATE SET {ANOTHER}"
        );
        let Letter { spot, of, position, record, reason, .. } = letter;
        let (names, values): (Vec<&str>, Vec<Option<&[u8]>>) =
            record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).unzip();
        let (lsn, ordinal) = (position.lsn.to_string(), position.ordinal.cast_signed());
        let (pipeline, sink) = (&self.name.pipeline, &self.name.sink);
        let params: [&(dyn ToSql + Sync); 18] = [
            pipeline,
            sink,
            &spot.topic,
            &spot.partition,
            &spot.offset,
            &of.table.schema,
            &of.table.table,
            &of.key,
            &lsn,
            &ordinal,
            &record.key,
            &record.value,
            &names,
            &values,
            &reason.code,
            &reason.sqlstate,
            &reason.column,
            &reason.message,
        ];
        let kept = self.client.execute(&sql, &params).await;
        kept.map(drop).map_err(|error| {
            self.fail();
            failure("writing lockstep.parked", None, error)
        })
    }

    pub(super) async fn settle_letters(&mut self, table: &TableName, key: Option<&str>) -> Outcome<()> {
        self.assert_open();
        let sql = format!(
            "UPDATE lockstep.parked p SET settled_at = clock_timestamp() WHERE {NAMED} AND p.table_schema = $3 \
                AND p.table_name = $4 AND p.key = coalesce($5::text, p.key) AND p.settled_at IS NULL"
        );
        let (pipeline, sink) = (&self.name.pipeline, &self.name.sink);
        let settled = self.client.execute(&sql, &[pipeline, sink, &table.schema, &table.table, &key]).await;
        settled.map(drop).map_err(|error| {
            self.fail();
            failure("writing lockstep.parked", None, error)
        })
    }

    pub(super) async fn letters_refused(&mut self, of: &LetterKey, reason: &Reason) -> Result<()> {
        let sql = format!(
            "UPDATE lockstep.parked p SET asked_at = NULL, code = $6, sqlstate = $7, column_name = $8, reason = $9 \
              WHERE {NAMED} AND {OF_KEY}"
        );
        let Reason { code, sqlstate, column, message } = reason;
        let (pipeline, sink) = (&self.name.pipeline, &self.name.sink);
        let (schema, table) = (&of.table.schema, &of.table.table);
        let params: [&(dyn ToSql + Sync); 9] =
            [pipeline, sink, schema, table, &of.key, code, sqlstate, column, message];
        let done = self.client.execute(&sql, &params).await;
        done.map(drop).map_err(|error| classify("writing lockstep.parked", error))
    }

    pub(super) async fn ask_letters(&mut self, of: &LetterKey) -> Result<()> {
        let sql = format!("UPDATE lockstep.parked p SET asked_at = clock_timestamp() WHERE {NAMED} AND {OF_KEY}");
        let (pipeline, sink) = (&self.name.pipeline, &self.name.sink);
        let asked = self.client.execute(&sql, &[pipeline, sink, &of.table.schema, &of.table.table, &of.key]).await;
        asked.map(drop).map_err(|error| classify("writing lockstep.parked", error))
    }

    pub(super) async fn save(&mut self) -> Outcome<()> {
        self.assert_open();
        // They would pile up otherwise.
        let sql = match self.saved {
            Some(_) => "RELEASE SAVEPOINT lockstep_row; SAVEPOINT lockstep_row",
            None => "SAVEPOINT lockstep_row",
        };
        let saved = self.client.batch_execute(sql).await;
        saved.map_err(|error| {
            self.fail();
            failure("writing a row by itself", None, error)
        })?;
        self.saved = Some((self.stages_new.clone(), self.stages_filled.clone()));
        Ok(())
    }

    pub(super) async fn take_back(&mut self) -> Result<bool> {
        let Some((new, filled)) = self.saved.take() else { return Ok(false) };
        let back = "ROLLBACK TO SAVEPOINT lockstep_row; RELEASE SAVEPOINT lockstep_row";
        let done = self.client.batch_execute(back).await;
        done.map_err(|error| classify("taking a row back", error))?;
        (self.stages_new, self.stages_filled) = (new, filled);
        self.transaction = Transaction::Open;
        self.hear();
        Ok(true)
    }
}
