//! How a batch of rows gets into a table best, by its size: what the thresholds of `sink::write` stand on.
//!
//! Each way is the statement that the product sends, on one connection within one transaction, into a table that holds rows
//! already: a prepared statement per row, all sent before the first answer; one statement over arrays; COPY into a temporary
//! table and one statement from there; COPY into the table itself under a savepoint (new rows only).

use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use futures_util::future::{join, try_join_all};
use futures_util::{SinkExt, TryStreamExt};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use crate::figure::Figure;
use crate::support::Services;
use crate::{Options, rows};

const SIZES: [usize; 10] = [1, 3, 10, 30, 100, 300, 1_000, 2_000, 5_000, 10_000];
/// Rows of each way at each size, at most so many batches.
const ROWS: usize = 20_000;
const BATCHES_MAX: usize = 200;
/// Rows that are there before.
const THERE: i64 = 300_000;

const COLUMNS: [(&str, &str); 10] = [
    ("id", "int8"),
    ("kind", "int4"),
    ("amount", "int4"),
    ("version", "int4"),
    ("made_at", "timestamp"),
    ("changed_at", "timestamptz"),
    ("price", "numeric"),
    ("active", "bool"),
    ("note", "text"),
    ("attributes", "jsonb"),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Single,
    Arrays,
    Stage,
    Direct,
}

struct Bed {
    client: Client,
    insert: [Statement; 3],
    update: [Statement; 3],
    stage: Statement,
    direct: Statement,
}

type Texts = Vec<Vec<Option<String>>>;

pub async fn run(services: &Services, options: &Options) -> Result<()> {
    let database = services.orders.create_database("bench_batch").await?;
    rows::create_table(&database).await?;
    rows::fill(&database, rows::TABLE, THERE).await?;
    let mut bed = Bed::new(database.connect().await?).await?;
    let all = bed.texts(i64::try_from(ROWS)?).await?;
    for (what, ways) in [
        ("insert", &[Way::Single, Way::Arrays, Way::Stage, Way::Direct][..]),
        ("update", &[Way::Single, Way::Arrays, Way::Stage]),
    ] {
        for size in SIZES {
            let batches = (ROWS / size).clamp(1, BATCHES_MAX);
            let taken = &all[..batches * size];
            let mut rates = vec![Vec::new(); ways.len()];
            for _ in 0..options.rounds {
                for (way, rates) in ways.iter().zip(&mut rates) {
                    rates.push(bed.measure(what == "insert", *way, taken, size).await?);
                }
            }
            for (way, rates) in ways.iter().zip(&rates) {
                let case = format!("{what} {way:?} {size}").to_lowercase();
                Figure::new("batch", "rows", "rows/s", rates).case(&case).print();
            }
        }
    }
    Ok(())
}

impl Bed {
    async fn new(client: Client) -> Result<Bed> {
        let list = |each: &dyn Fn(usize) -> String, sep: &str| (0..10).map(each).collect::<Vec<_>>().join(sep);
        let names = list(&|i| COLUMNS[i].0.to_owned(), ", ");
        let set = |value: &dyn Fn(usize) -> String| {
            let one = |i: usize| format!("{} = {}", COLUMNS[i].0, value(i));
            (1..10).map(one).collect::<Vec<_>>().join(", ")
        };
        let conflict = format!("ON CONFLICT (id) DO UPDATE SET {}", set(&|i| format!("excluded.{}", COLUMNS[i].0)));
        let stage = list(&|i| format!("{} {}", COLUMNS[i].0, COLUMNS[i].1), ", ");
        let settings = "SET plan_cache_mode = force_generic_plan; SET jit = off";
        client
            .batch_execute(&format!("{settings}; CREATE TEMPORARY TABLE staged ({stage}) ON COMMIT DELETE ROWS"))
            .await?;
        let arrays = list(&|i| format!("${}::text[]", i + 1), ", ");
        let cast = |from: &str| list(&|i| format!("{from}{}::{}", COLUMNS[i].0, COLUMNS[i].1), ", ");
        let single = list(&|i| format!("${}::text::{}", i + 1, COLUMNS[i].1), ", ");
        let into = format!("INSERT INTO public.events ({names})");
        let update = "UPDATE public.events AS t SET";
        let mut prepared = Vec::new();
        for sql in [
            format!("{into} VALUES ({single}) {conflict}"),
            format!("{into} SELECT {} FROM unnest({arrays}) AS v({names}) {conflict}", cast("v.")),
            format!("{into} SELECT {names} FROM staged {conflict}"),
            format!("{update} {} WHERE t.id = $1::text::int8", set(&|i| format!("${}::text::{}", i + 1, COLUMNS[i].1))),
            format!(
                "{update} {} FROM unnest({arrays}) AS v({names}) WHERE t.id = v.id::int8",
                set(&|i| format!("v.{}::{}", COLUMNS[i].0, COLUMNS[i].1))
            ),
            format!("{update} {} FROM staged AS v WHERE t.id = v.id", set(&|i| format!("v.{}", COLUMNS[i].0))),
            format!("COPY staged ({names}) FROM STDIN"),
            format!("COPY public.events ({names}) FROM STDIN"),
        ] {
            prepared.push(client.prepare(&sql).await?);
        }
        let mut next = prepared.into_iter();
        let mut take = || next.next().expect("as many as were prepared");
        let insert = [take(), take(), take()];
        let update = [take(), take(), take()];
        Ok(Bed { client, insert, update, stage: take(), direct: take() })
    }

    /// The first rows of the table, as texts.
    async fn texts(&self, rows: i64) -> Result<Texts> {
        let sql = format!("COPY (SELECT * FROM public.events WHERE id < {rows} ORDER BY id) TO STDOUT");
        let chunks: Vec<Bytes> = self.client.copy_out(&sql).await?.try_collect().await?;
        let text = String::from_utf8(chunks.concat())?;
        let cell = |cell: &str| (cell != "\\N").then(|| cell.to_owned());
        Ok(text.lines().map(|line| line.split('\t').map(cell).collect()).collect())
    }

    /// Rows a second in batches of `size`. Nothing stays.
    async fn measure(&mut self, insert: bool, way: Way, texts: &[Vec<Option<String>>], size: usize) -> Result<f64> {
        let mut texts: Texts = texts.to_vec();
        if insert {
            for row in &mut texts {
                let id: i64 = row[0].as_deref().unwrap_or_default().parse()?;
                row[0] = Some((id + THERE).to_string());
            }
        }
        self.client.batch_execute("BEGIN").await?;
        let begun = Instant::now();
        for batch in texts.chunks(size) {
            self.write(insert, way, batch).await?;
        }
        let seconds = begun.elapsed().as_secs_f64();
        self.client.batch_execute("ROLLBACK; VACUUM public.events").await.ok();
        Ok(texts.len() as f64 / seconds)
    }

    async fn write(&self, insert: bool, way: Way, batch: &[Vec<Option<String>>]) -> Result<()> {
        let statements = if insert { &self.insert } else { &self.update };
        match way {
            Way::Single => {
                let params: Vec<Vec<&(dyn ToSql + Sync)>> =
                    batch.iter().map(|row| row.iter().map(|cell| cell as &(dyn ToSql + Sync)).collect()).collect();
                try_join_all(params.iter().map(|row| self.client.execute(&statements[0], row))).await?;
            }
            Way::Arrays => {
                let arrays: Texts = (0..10).map(|i| batch.iter().map(|row| row[i].clone()).collect()).collect();
                let params: Vec<&(dyn ToSql + Sync)> = arrays.iter().map(|a| a as &(dyn ToSql + Sync)).collect();
                self.client.execute(&statements[1], &params).await?;
            }
            Way::Stage => {
                self.client.batch_execute("TRUNCATE staged").await?;
                self.copy(&self.stage, batch).await?;
                self.client.batch_execute("SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off").await?;
                self.client.execute(&statements[2], &[]).await?;
            }
            Way::Direct => {
                let (saved, copied) =
                    join(self.client.batch_execute("SAVEPOINT direct"), self.copy(&self.direct, batch)).await;
                saved?;
                copied?;
                self.client.batch_execute("RELEASE SAVEPOINT direct").await?;
            }
        }
        Ok(())
    }

    async fn copy(&self, statement: &Statement, batch: &[Vec<Option<String>>]) -> Result<()> {
        let mut out = std::pin::pin!(self.client.copy_in::<_, Bytes>(statement).await?);
        let mut text = String::new();
        for row in batch {
            let cells: Vec<&str> = row.iter().map(|cell| cell.as_deref().unwrap_or("\\N")).collect();
            text.push_str(&cells.join("\t"));
            text.push('\n');
            if text.len() >= 64 * 1024 {
                out.send(Bytes::from(std::mem::take(&mut text))).await?;
            }
        }
        out.send(Bytes::from(text)).await?;
        out.finish().await?;
        Ok(())
    }
}
