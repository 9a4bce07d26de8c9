//! The visibility cut (docs/design.md section 4) under writers at full speed, and the traps behind its rules.
//!
//! Every chunk that enters the stream is compared with what the stream says there, and what a sink would hold at a load's end
//! with what it says then. The same is done with loads that lack a rule, and those must be found out. `LOCKSTEP_LONG=1` reads
//! thousands of chunks, `LOCKSTEP_TEST_SEED=N` gives the writers the same dice.
//!
//! | trap | test |
//! |---|---|
//! | a commit is streamed before it is visible | [`chunks_under_eight_writers_are_what_the_stream_says`] |
//! | long before, because it waits for a standby; and the reader dies in between | [`commits_that_wait_for_a_standby`] |
//! | a transaction wrote before its table was published, and commits long after; its xid is above the ALTER's | [`what_was_written_before_its_table_was_published`] |
//! | a row moves from what is not read into what is, and a big column was not sent | [`a_row_moves_into_what_is_loaded_without_its_big_column`] |
//! | a collation orders keys otherwise than the sink's | [`keys_of_a_collation_that_a_sink_does_not_have`] |
//! | a message has the LSN of the next commit | [`a_message_at_the_place_of_the_next_commit`] |
//! | a rewriting ALTER between snapshot and read | `it_source::the_lock_comes_before_the_snapshot` |
//! | a mark that nobody flushes | `it_source::a_mark_is_in_the_flushed_log` |
//! | DDL, TRUNCATE and kills in the middle of a load, on the whole way | `it_ddl::a_storm_of_shapes_with_deaths`, `it_pipeline::existing_rows_are_loaded_under_a_hostile_load`, `it_pipeline::a_first_load_that_is_killed_goes_on` |

mod cut;
mod support;

use std::time::{Duration, Instant};

use cut::bed::{PATIENCE, public};
use cut::follower::Core;
use cut::load::Tally;
use cut::writers::{self, Writers};
use cut::{Bed, Fence, Follower, Rule};
use lockstep::key::{KeyColumn, KeyOrder, predicate};
use lockstep::lsn::{CHUNK_ORDINAL_BASE, Position};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use support::server::OwnServer;
use support::{Server, Services};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

/// Chunks by all rules that a race reads, if it comes to them in time.
const CHUNKS: u64 = 500;
const CHUNKS_LONG: u64 = 20_000;
/// Between two deaths of loaders.
const DEATHS: Duration = Duration::from_millis(300);
const RACE_MAX: Duration = Duration::from_secs(4);
const RACE_MAX_LONG: Duration = Duration::from_secs(240);

fn catalog() -> Server {
    Services::from_env().catalog
}

fn seed() -> u64 {
    match std::env::var("LOCKSTEP_TEST_SEED") {
        Ok(seed) => seed.parse().expect("LOCKSTEP_TEST_SEED is a number"),
        Err(_) => rand::random_range(0..1_000_000),
    }
}

/// Loads go round and round while writers write, so many of which wait for a standby, and now and then a loader dies. In the
/// end each comes to its end. One load lacks the overlay, and is found out.
async fn race(server: &Server, waiting: u64) {
    let seed = seed();
    let bed = Bed::new(server, writers::SCHEMA, &writers::TABLES, &[]).await;
    bed.sql(&writers::seed()).await;
    let mut follower = bed.follower().await;
    let sizes = [10, 10, 10, 10, 25, 60];
    for rows in sizes {
        follower.core.loads.push(bed.load(&writers::TABLES, rows, Rule::ALL).repeated());
    }
    follower.core.loads.push(bed.load(&writers::TABLES, 40, Rule::WITHOUT_OVERLAY).repeated());
    let (chunks, time) = match std::env::var_os("LOCKSTEP_LONG") {
        Some(_) => (CHUNKS_LONG, RACE_MAX_LONG),
        None => (CHUNKS, RACE_MAX),
    };
    let writers = Writers::start(&bed.database, seed, 8 - waiting, waiting, writers::transaction).await;
    let (begun, mut died) = (Instant::now(), Instant::now());
    let mut random = StdRng::seed_from_u64(seed);
    let enough = |core: &mut Core| {
        if died.elapsed() > DEATHS {
            died = Instant::now();
            core.loads[random.random_range(0..sizes.len())].die();
        }
        let (right, wrong) = core.loads.split_at(sizes.len());
        let read: u64 = right.iter().map(|load| load.tally.chunks).sum();
        let found_out = wrong.iter().any(|load| !load.tally.is_clean());
        found_out && (read >= chunks || begun.elapsed() > time)
    };
    follower.until_in("enough chunks, and a load without its rule that is found out", time + PATIENCE, enough).await;
    let written = writers.stop().await;
    let raced = begun.elapsed();
    follower.core.loads.iter_mut().for_each(|load| load.repeat = false);
    follower.until("the ends of all loads", |core| core.loads.iter().all(|load| load.is_idle())).await;
    let core = &follower.core;
    eprintln!(
        "seed {seed}: {} transactions, {} failed, {} changes in {raced:.1?}",
        written.committed, written.failed, core.changes
    );
    for load in &core.loads {
        eprintln!("  {}", load.tally);
    }
    let right = &core.loads[..sizes.len()];
    for load in right {
        assert!(load.tally.is_clean(), "seed {seed}: {}", load.tally);
    }
    assert!(right.iter().any(|load| load.tally.overlaid > 0), "seed {seed}: there was nothing to see");
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_under_eight_writers_are_what_the_stream_says() {
    race(&catalog(), 0).await;
}

/// In the middle of a load a commit is streamed and waits for a standby, so no snapshot sees it. Who was there knows of it; who
/// comes later must wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn commits_that_wait_for_a_standby() {
    // `local` by default: whoever is to wait says so.
    let settings = ["synchronous_standby_names = 'nobody'", "synchronous_commit = local"];
    let waiting = OwnServer::start(&Services::from_env(), "waiting", &settings).await;
    let bed = Bed::new(&waiting.server, "CREATE TABLE public.t (id int PRIMARY KEY, v text)", &["t"], &[]).await;
    bed.sql("INSERT INTO t SELECT i, 'old' FROM generate_series(1, 400) i").await;
    let mut follower = bed.follower().await;
    follower.catch_up().await;
    const STAYS: usize = 0;
    const BLIND: usize = 1;
    const DIES: usize = 2;
    const DIES_UNFENCED: usize = 3;
    for rule in [Rule::ALL, Rule::WITHOUT_OVERLAY, Rule::ALL, Rule::fence(Fence::AtOnce)] {
        follower.core.loads.push(bed.load(&["t"], 10, rule));
    }
    follower.until("first chunks", hold_after_a_chunk).await;

    let commits = follower.core.commits;
    let writer = bed.database.connect_with("-c synchronous_commit=on").await.unwrap();
    let cancel = writer.cancel_token();
    let commit = tokio::spawn(async move { writer.batch_execute("UPDATE t SET v = 'new' WHERE id = 400").await });
    follower.until("the commit", |core| core.commits > commits).await;
    for i in [DIES, DIES_UNFENCED] {
        follower.core.loads[i].die();
    }
    let read = follower.core.loads[DIES].tally.chunks;
    follower.core.loads.iter_mut().for_each(|load| load.hold = false);
    let ended = |core: &mut Core| {
        [STAYS, BLIND, DIES_UNFENCED].iter().all(|i| core.loads[*i].is_idle()) && says_or_ends(core, DIES)
    };
    follower.until("the ends of the loads that wait for nobody", ended).await;
    assert!(!commit.is_finished(), "nobody has let it go on");
    assert_eq!(follower.core.loads[DIES].tally.chunks, read, "nothing is read before it");
    cancel.cancel_query(NoTls).await.unwrap();
    commit.await.unwrap().unwrap();
    follower.until("the last load's end", |core| core.loads[DIES].is_idle()).await;

    let tallies: Vec<Tally> = follower.core.loads.iter().map(|load| load.tally).collect();
    tallies.iter().for_each(|tally| eprintln!("  {tally}"));
    assert!(tallies[STAYS].is_clean() && tallies[STAYS].overlaid == 1);
    assert!(tallies[DIES].is_clean() && tallies[DIES].overlaid == 0);
    for i in [BLIND, DIES_UNFENCED] {
        assert_eq!((tallies[i].chunk.stale, tallies[i].sink.stale), (1, 1), "a load without its rule is found out");
    }
    drop((follower, bed));

    race(&waiting.server, 4).await;
}

/// A load asks for nothing more once a chunk of it is there.
fn hold_after_a_chunk(core: &mut Core) -> bool {
    core.loads.iter_mut().for_each(|load| load.hold = load.tally.chunks > 0);
    core.loads.iter().all(|load| load.hold)
}

/// A load has said what it waits for, or waits for nothing.
fn says_or_ends(core: &Core, load: usize) -> bool {
    core.loads[load].waits_for.is_some() || core.loads[load].is_idle()
}

async fn begin(bed: &Bed, sql: &str) -> (Client, u64) {
    let client = bed.database.connect().await.unwrap();
    client.batch_execute(&format!("BEGIN; {sql}")).await.unwrap();
    let xid: String = client.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap().get(0);
    (client, xid.parse().unwrap())
}

fn ids(follower: &Follower, load: usize) -> Vec<String> {
    follower.core.loads[load].sink(&public("late")).copy.texts(0)
}

/// Such rows are in no stream, so they must be in the chunk: it waits for whoever may have written them. Neither to wait for
/// nobody is enough, nor for those that are older than the ALTER.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_before_its_table_was_published() {
    let schema =
        "CREATE TABLE public.early (id int PRIMARY KEY); CREATE TABLE public.late (id int PRIMARY KEY, v text)";
    let bed = Bed::new(&catalog(), schema, &["early"], &["late"]).await;
    bed.sql("INSERT INTO late VALUES (1, 'there')").await;
    let mut follower = bed.follower().await;
    let (older, _) = begin(&bed, "INSERT INTO late VALUES (2, 'older')").await;
    let add = format!("ALTER PUBLICATION {} ADD TABLE late", bed.config.source.publication);
    let (alter, altered) = begin(&bed, &add).await;
    let (newer, xid) = begin(&bed, "INSERT INTO late VALUES (3, 'newer')").await;
    assert!(xid > altered);
    alter.batch_execute("COMMIT").await.unwrap();
    for fence in [Fence::Own, Fence::AtOnce, Fence::Above(altered)] {
        follower.core.loads.push(bed.load(&["late"], 10, Rule::fence(fence)));
    }

    let named = |core: &mut Core| core.loads[1].is_idle() && says_or_ends(core, 0);
    follower.until("a load that waits for nobody, and one that says for whom", named).await;
    let waits_for = follower.core.loads[0].waits_for.take().expect("it waits for the older one");
    assert!(waits_for.contains("transaction") && waits_for.contains("must end"), "{waits_for}");
    older.batch_execute("COMMIT").await.unwrap();
    let named = |core: &mut Core| core.loads[2].is_idle() && says_or_ends(core, 0);
    follower.until("a load that waits for the older one alone", named).await;
    assert!(!follower.core.loads[0].is_idle(), "the newer one is still open");
    newer.batch_execute("COMMIT").await.unwrap();
    follower.until("the load's end", |core| core.loads[0].is_idle()).await;
    bed.sql("INSERT INTO late VALUES (4, 'after')").await;
    follower.catch_up().await;

    assert_eq!(follower.core.model[&public("late")].texts(0), ["4"], "the others are in no stream");
    assert_eq!(ids(&follower, 0), ["1", "2", "3", "4"]);
    assert_eq!(ids(&follower, 1), ["1", "4"], "a load without its rule is found out");
    assert_eq!(ids(&follower, 2), ["1", "2", "4"], "so is one with half of it");
}

/// The sink has neither the row nor the column; the range that the row moved into is read again.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_moves_into_what_is_loaded_without_its_big_column() {
    let schema = "CREATE TABLE public.t (id int PRIMARY KEY, v int, big text); ALTER TABLE public.t ALTER big SET STORAGE EXTERNAL";
    let bed = Bed::new(&catalog(), schema, &["t"], &[]).await;
    bed.sql("INSERT INTO t SELECT i * 2, 0, repeat(md5(i::text), 80) FROM generate_series(1, 300) i").await;
    let mut follower = bed.follower().await;
    follower.catch_up().await;
    follower.core.loads.push(bed.load(&["t"], 10, Rule::ALL));
    follower.until("a first chunk", hold_after_a_chunk).await;
    let table = public("t");
    bed.sql("UPDATE t SET id = 3 WHERE id = 600").await;
    follower.catch_up().await;
    assert!(!follower.core.loads[0].sink(&table).copy.texts(0).contains(&"3".to_owned()), "it can't be made there");
    // What happens to it before its range comes again meets nothing.
    bed.sql("UPDATE t SET v = 1 WHERE id = 3; UPDATE t SET id = 5 WHERE id = 3").await;
    follower.core.loads[0].hold = false;
    follower.until("the load's end", |core| core.loads[0].is_idle()).await;
    let load = &follower.core.loads[0];
    assert!(load.tally.is_clean(), "{}", load.tally);
    assert!(load.sink(&table).copy.texts(0).contains(&"5".to_owned()));
    assert!(load.tally.chunks > 30, "30 hold the rows, and the range of the first comes once more");
}

/// Chunks are cut by bytes, so a range means the same rows where keys are compared by bytes.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_collation_that_a_sink_does_not_have() {
    const WORDS: &str = "SELECT w || n FROM unnest('{a,B,b,_,Z,é,zz,-a,ß,\"\"}'::text[]) w, generate_series(1, 9) n";
    let schema = "CREATE TABLE public.word (k text COLLATE \"en-x-icu\" PRIMARY KEY);
        CREATE TABLE public.there (k text COLLATE \"C\" PRIMARY KEY)";
    let bed = Bed::new(&catalog(), schema, &["word"], &[]).await;
    bed.sql(&format!("INSERT INTO word {WORDS}; INSERT INTO there {WORDS}")).await;
    let client = bed.database.connect().await.unwrap();
    let keys = async |sql: String| -> Vec<String> {
        client.query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    let (ours, bytes) = (keys("TABLE word ORDER BY k".into()).await, keys("TABLE there ORDER BY k".into()).await);
    assert!(ours != bytes, "the two order words differently");
    let mut follower = bed.follower().await;
    follower.catch_up().await;
    follower.core.loads.push(bed.load(&["word"], 10, Rule::ALL));
    follower.until("the load's end", |core| core.loads[0].is_idle()).await;
    let load = &follower.core.loads[0];
    assert!(load.tally.is_clean() && load.tally.chunks > 8, "{}", load.tally);
    let sink = load.sink(&public("word"));
    assert_eq!(sink.copy.texts(0), bytes);
    let columns = [KeyColumn::new("k", KeyOrder::Text, "text")];
    for range in &sink.loaded {
        let there = keys(format!("SELECT k FROM there WHERE {} ORDER BY k", predicate(&columns, range))).await;
        assert_eq!(sink.copy.within(range).texts(0), there, "{range:?}");
    }
}

/// By such an LSN a chunk would stand behind changes that are not in it. It stands behind the commit before.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_at_the_place_of_the_next_commit() {
    let schema = "CREATE TABLE public.t (id int PRIMARY KEY, v int)";
    let bed = Bed::new(&catalog(), schema, &["t"], &[]).await;
    bed.sql("INSERT INTO t SELECT i, 0 FROM generate_series(1, 200) i").await;
    let mut follower = bed.follower().await;
    for _ in 0..4 {
        follower.core.loads.push(bed.load(&["t"], 10, Rule::ALL).repeated());
    }
    // Half of what they log are commits, each by itself.
    let mut writers = JoinSet::new();
    for id in 1..5 {
        let client = bed.database.connect_with("-c synchronous_commit=off").await.unwrap();
        let begin = format!("BEGIN; UPDATE t SET v = v + 1 WHERE id = {id}");
        writers.spawn(async move {
            loop {
                client.batch_execute(&begin).await.unwrap();
                client.batch_execute("COMMIT").await.unwrap();
            }
        });
    }
    let met = |core: &mut Core| core.twins.iter().filter(|(_, at)| at.is_some()).count() > 2;
    follower.until("messages with the LSN of the next commit", met).await;
    writers.shutdown().await;
    for (lsn, at) in &follower.core.twins {
        let (next, Some(at)) = (Position::new(*lsn, 0), *at) else { continue };
        assert!(at < next && at.ordinal >= CHUNK_ORDINAL_BASE, "{at}");
        assert!(Position::new(*lsn, CHUNK_ORDINAL_BASE) > next, "the message's own would not do");
    }
}
