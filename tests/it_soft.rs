//! Tables whose deleted rows stay at the sink with a mark (`delete = "soft"`), on a real server: what changes come to, what the table
//! must be like, and a pipeline.

mod support;
#[path = "support/sink.rs"]
mod world;

use lockstep::apply::net::{Folded, NetEffect};
use lockstep::apply::soft;
use lockstep::change::Op;
use lockstep::config::{Delete, Expression, Function, SinkTable, Value};
use lockstep::error::Code;
use lockstep::key::KeyRange;
use lockstep::relation::TableName;
use lockstep::sink::sql::SinkTablePlan;
use lockstep::sink::{Counts, Failure, WantedTable};
use support::pipeline::Pipeline;
use support::scene::{PATIENCE, Scene, halted, read_topic, text, wait_text};
use world::{Owned, World, halt, in_database, op, relation, row};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const COLUMNS: &str = "id:int4! v:text big:text";

fn wanted(table: &str, columns: &str, mark: &str) -> WantedTable {
    let delete = Delete::Soft { column: mark.into() };
    let target = SinkTable { delete, ..SinkTable::new("orders", TableName::new("public", table)) };
    WantedTable::of(&relation(table, columns), &target).unwrap()
}

/// Changes as the driver folds them; `TIME: CHANGE`, the time in seconds since 1970.
fn net(plan: &SinkTablePlan, ops: &[&str]) -> NetEffect {
    let mut fold = plan.fold();
    for text in ops {
        assert_eq!(fold.fold(timed(text)).unwrap(), Folded::Done, "{text}");
    }
    fold.drain()
}

fn timed(text: &str) -> Op {
    let (time, change) = text.split_once(": ").unwrap();
    soft::marked(op(change), Some(time.parse::<i64>().unwrap() * 1_000_000))
}

const ROWS: &str = "SELECT id, v, big, extract(epoch FROM deleted_at)::int FROM t ORDER BY id";

async fn applied(a: &mut Owned, plan: &SinkTablePlan, ops: &[&str]) -> Result<Counts, Failure> {
    a.apply(&[(plan, net(plan, ops))]).await
}

#[test]
fn rows_are_marked_and_come_to_life_again() {
    in_database(|world| async move {
        let own = "own text DEFAULT 'mine'";
        let ddl = format!("CREATE TABLE t (id int PRIMARY KEY, v text, big text, deleted_at timestamptz, {own})");
        let mut a = world.sink(&ddl).await;
        let plan = a.sink.plan(&[wanted("t", COLUMNS, "deleted_at")]).await.unwrap().remove(0);
        let counts = applied(&mut a, &plan, &["1: insert 1|a|A", "1: insert 2|b|B", "1: insert 3|c|C"]).await.unwrap();
        assert_eq!(counts, Counts { inserted: 3, ..Counts::default() });
        // What was there and what was not, both as they were last.
        let gone = ["2: update 1|x|-", "3: delete 1|-|-", "4: insert 4|d|D", "5: delete 4|-|-", "6: delete 2|-|-"];
        let counts = applied(&mut a, &plan, &gone).await.unwrap();
        assert_eq!(counts, Counts { inserted: 1, deleted: 2, ..Counts::default() });
        assert_eq!(world.rows(ROWS).await, "1|x|A|3\n2|b|B|6\n3|c|C|~\n4|d|D|5");
        // A row that comes again is the same row to the service.
        world.run("UPDATE t SET own = 'kept' WHERE id = 1").await;
        applied(&mut a, &plan, &["7: insert 1|new|N"]).await.unwrap();
        assert_eq!(world.rows("SELECT * FROM t WHERE id = 1").await, "1|new|N|~|kept");
        // A key change: the old key is marked, the new one comes to life, with what was not sent; also where a marked row is.
        let moved = ["8: rekey 3|-|- -> 2|moved|-", "8: rekey 1|-|- -> 9|nine|whole"];
        assert_eq!(applied(&mut a, &plan, &moved).await.unwrap().moved, 1);
        assert_eq!(world.rows(ROWS).await, "1|new|N|8\n2|moved|C|~\n3|c|C|8\n4|d|D|5\n9|nine|whole|~");
        for wrong in ["9: update 1|y|-", "9: delete 1|-|-", "9: rekey 1|-|- -> 10|z|-", "9: delete 77|-|-"] {
            assert_eq!(halt(applied(&mut a, &plan, &[wrong]).await.unwrap_err()).code, Code::SinkDiverged, "{wrong}");
        }
        let to = a.begin().await;
        a.sink.truncate(&[&plan]).await.unwrap();
        a.commit(to).await;
        assert_eq!(world.rows("SELECT count(*), count(deleted_at), count(*) FILTER (WHERE deleted_at > now() - interval '1 min') FROM t").await, "5|5|2");
    });
}

#[test]
fn copied_rows_say_what_is_there_and_leave_marked_ones_alone() {
    in_database(|world| async move {
        let mut a = world.sink("CREATE TABLE t (id int PRIMARY KEY, v text, big text, gone boolean)").await;
        let plan = a.sink.plan(&[wanted("t", COLUMNS, "gone")]).await.unwrap().remove(0);
        world.run("INSERT INTO t SELECT i, 'a', 'b', CASE WHEN i > 6 THEN true WHEN i > 3 THEN false END FROM generate_series(1, 9) i").await;
        let versions = "SELECT id, xmin FROM t WHERE id IN (5, 8, 9) ORDER BY id";
        let before = world.rows(versions).await;
        // 5 is right, 7 comes to life, 6 and 2 to 4 are gone, 8 is gone and marked already; 9 and 1 are out of the range.
        let range = KeyRange { after: Some(vec!["1".into()]), through: Some(vec!["8".into()]) };
        let live = |text: &str| {
            let mut row = row(text);
            row.push(lockstep::value::Cell::Null);
            row
        };
        let counts = a.replace(&plan, &range, &[live("5|a|b"), live("7|c|d")]).await;
        assert_eq!(counts, Counts { inserted: 1, deleted: 4, ..Counts::default() });
        assert_eq!(world.rows(versions).await, before);
        let held = "SELECT string_agg(id || CASE WHEN gone THEN '-' ELSE '+' END, ' ' ORDER BY id) FROM t";
        assert_eq!(world.rows(held).await, "1+ 2- 3- 4- 5+ 6- 7+ 8- 9-");
        assert_eq!(world.rows("SELECT * FROM t WHERE id = 7").await, "7|c|d|f");
        // Thousands go by COPY: over marked rows, which is nothing to warn of, and as marks.
        let many: Vec<String> = (6..3006).filter(|i| *i != 7).map(|i| format!("1: insert {i}|n|m")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let counts = applied(&mut a, &plan, &many).await.unwrap();
        assert_eq!((counts.inserted, counts.overwritten), (2999, 0));
        assert_eq!(world.rows("SELECT count(*) FROM t WHERE gone IS FALSE").await, "3001");
        let many: Vec<String> = (6..3006).map(|i| format!("2: delete {i}|-|-")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(applied(&mut a, &plan, &many).await.unwrap(), Counts { deleted: 3000, ..Counts::default() });
        assert_eq!(world.rows("SELECT count(*) FILTER (WHERE gone), count(*) FROM t").await, "3003|3005");
    });
}

/// A unique value goes from a row that is marked to the next one, and a key change takes its own along.
#[test]
fn unique_values_are_free_once_their_row_is_marked() {
    in_database(|world| async move {
        let unique = "CREATE UNIQUE INDEX t_v ON t (v) WHERE deleted_at IS NULL AND v <> ''";
        let ddl = "CREATE TABLE t (id int PRIMARY KEY, v text, big text, deleted_at timestamptz)";
        let mut a = world.sink(&format!("{ddl}; {unique}")).await;
        let plan = a.sink.plan(&[wanted("t", COLUMNS, "deleted_at")]).await.unwrap().remove(0);
        applied(&mut a, &plan, &["1: insert 1|a|A", "1: insert 2|b|B"]).await.unwrap();
        let ops = ["2: delete 1|-|-", "2: insert 3|a|C", "2: rekey 2|-|- -> 4|-|-"];
        applied(&mut a, &plan, &ops).await.unwrap();
        assert_eq!(world.rows(ROWS).await, "1|a|A|2\n2|b|B|2\n3|a|C|~\n4|b|B|~");
        // A swap, in which rows are parked, beside a key change that takes what was not sent.
        let ops = ["3: update 3|b|-", "3: rekey 4|-|- -> 5|a|-"];
        let to = a.begin().await;
        let refused = a.sink.apply(&[(&plan, net(&plan, &ops))]).await;
        if refused.is_err() {
            a.sink.rollback().await.unwrap();
            let again = a.begin().await;
            a.sink.park(Default::default());
            a.sink.apply(&[(&plan, net(&plan, &ops))]).await.unwrap();
            a.commit(again).await;
        } else {
            a.commit(to).await;
        }
        assert_eq!(world.rows("SELECT id, v, big FROM t WHERE deleted_at IS NULL ORDER BY id").await, "3|b|C\n5|a|B");
        assert_eq!(world.rows("SELECT id, v FROM t WHERE deleted_at IS NOT NULL ORDER BY id").await, "1|a\n2|b\n4|b");
    });
}

#[test]
fn what_a_table_must_be_like_is_said_with_what_mends_it() {
    in_database(|world| async move {
        let a = world
            .sink(
                "CREATE TABLE t (id int PRIMARY KEY, v text UNIQUE, big text, p int REFERENCES t);
            CREATE TABLE parent (id int PRIMARY KEY); ALTER TABLE t ADD FOREIGN KEY (p) REFERENCES parent",
            )
            .await;
        let all = || vec![wanted("t", COLUMNS, "deleted_at"), world::wanted("parent", "id:int4!")];
        let found = a.sink.preflight(&all()).await.unwrap().halts;
        let messages: Vec<&str> = found.iter().map(|halt| halt.message.as_str()).collect();
        assert_eq!(found.len(), 3, "{messages:?}");
        assert!(
            messages[0].contains("no column deleted_at") && messages[1].contains("hold on to rows of public.parent"),
            "{messages:?}"
        );
        assert!(messages[2].contains("t_v_key of public.t compares rows with those that are marked"), "{messages:?}");
        world.run(&found[0].hint).await;
        world.run(found[1].hint.split(';').next().unwrap()).await;
        world.run(&found[2].hint).await;
        let halts = a.sink.preflight(&all()).await.unwrap().halts;
        assert!(halts.is_empty(), "the hints mend it: {halts:?}");
        // What nothing is written to holds no value that another row has now; a computed column does.
        world.run("ALTER TABLE t ADD sid serial UNIQUE, ADD low text; CREATE UNIQUE INDEX t_low ON t (low)").await;
        assert_eq!(a.sink.preflight(&all()).await.unwrap().halts.len(), 0);
        let low = Value {
            column: "low".into(),
            expression: Expression::Of { function: Function::Lower, columns: vec!["v".into()] },
        };
        let target = SinkTable {
            delete: Delete::Soft { column: "deleted_at".into() },
            values: vec![low],
            ..SinkTable::new("orders", TableName::new("public", "t"))
        };
        let computed = WantedTable::of(&relation("t", COLUMNS), &target).unwrap();
        let found = a.sink.preflight(&[computed]).await.unwrap().halts;
        assert!(found.iter().any(|halt| halt.message.contains("t_low of public.t")), "{found:?}");
        let again = [wanted("t", COLUMNS, "v2"), wanted("t", COLUMNS, "big2"), wanted("t", COLUMNS, "strict")];
        world
            .run("ALTER TABLE t ADD v2 timestamptz(0), ADD big2 int, ADD strict timestamptz NOT NULL DEFAULT now()")
            .await;
        world.run("DROP INDEX t_v_key").await;
        for wanted in again {
            let halts = a.sink.preflight(std::slice::from_ref(&wanted)).await.unwrap().halts;
            let mends = halts.iter().find(|halt| !halt.message.contains("has no default"));
            world.run(&mends.expect("it is no mark").hint).await;
            let halts = a.sink.preflight(&[wanted]).await.unwrap().halts;
            assert!(halts.iter().all(|halt| halt.message.contains("has no default")), "{halts:?}");
        }
        let target = |delete| SinkTable { delete, ..SinkTable::new("orders", TableName::new("public", "t")) };
        let soft = |column: &str| target(Delete::Soft { column: column.into() });
        let keyless = WantedTable::of(&relation("t", "v:text"), &soft("deleted_at")).unwrap_err();
        assert!(keyless.message.contains("has no key"), "{keyless}");
        let taken = WantedTable::of(&relation("t", COLUMNS), &soft("big")).unwrap_err();
        assert!(taken.message.contains("has a column big"), "{taken}");
    });
}

/// Random changes of whole batches, against the same ones as a service would write them one by one.
#[test]
fn whatever_happens_the_table_is_what_the_changes_one_by_one_make_of_it() {
    random_batches("numeric");
    random_batches("int4");
}

fn random_batches(key: &'static str) {
    in_database(|world| async move {
        let table = |name: &str| {
            format!("CREATE TABLE {name} (id {key} PRIMARY KEY, v text, big text, deleted_at timestamptz)")
        };
        let mut a = world.sink(&format!("{}; {}", table("t"), table("by_hand"))).await;
        let columns = COLUMNS.replace("int4", key);
        let plan = a.sink.plan(&[wanted("t", &columns, "deleted_at")]).await.unwrap().remove(0);
        let mut dice = Dice(0x5eed);
        let (mut there, mut time): (Vec<String>, i64) = (Vec::new(), 0);
        for _ in 0..60 {
            let (mut ops, mut told) = (Vec::new(), String::new());
            for _ in 0..dice.roll(12) {
                time += 1;
                let Some(change) = change(&mut dice, &mut there, key) else { continue };
                by_hand(&world, time, &change).await;
                told += &format!("{time}: {change}; ");
                ops.push(timed(&format!("{time}: {change}")));
            }
            let to = a.begin().await;
            match batch(&mut a, &plan, ops.clone()).await {
                Ok(()) => a.commit(to).await,
                // As the driver does it then.
                Err(Failure::Constraint(_) | Failure::Unique(_)) => {
                    a.sink.rollback().await.unwrap();
                    let ops: Vec<(usize, Op)> = ops.into_iter().map(|op| (0, op)).collect();
                    a.apply_one_by_one(&[&plan], &ops).await.unwrap();
                }
                Err(other) => panic!("{other:?}"),
            }
            let all = |name: &str| format!("SELECT id, v, big, deleted_at FROM {name} ORDER BY id");
            assert_eq!(world.rows(&all("t")).await, world.rows(&all("by_hand")).await, "after {time} changes: {told}");
        }
        assert!(time > 200);
    });
}

async fn batch(a: &mut Owned, plan: &SinkTablePlan, ops: Vec<Op>) -> Result<(), Failure> {
    let mut fold = plan.fold();
    for op in ops {
        let mut next = op;
        while let Folded::FlushFirst(again) = fold.fold(next).unwrap() {
            a.sink.apply(&[(plan, fold.drain())]).await?;
            next = again;
        }
    }
    a.sink.apply(&[(plan, fold.drain())]).await.map(drop)
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Equal values of a numeric have several texts: 1 and 1.0 are one row.
fn change(dice: &mut Dice, there: &mut Vec<String>, kind: &str) -> Option<String> {
    let value = |key: &String| key.split('.').next().unwrap().to_owned();
    let free = |there: &Vec<String>, key: &String| there.iter().all(|other| value(other) != value(key));
    let key = format!("{}{}", dice.roll(6), if kind == "int4" || dice.roll(2) == 0 { "" } else { ".0" });
    let (v, big) = (dice.roll(100), if dice.roll(2) == 0 { "-".to_owned() } else { dice.roll(100).to_string() });
    let at = (!there.is_empty()).then(|| usize::try_from(dice.roll(there.len() as u64)).unwrap());
    Some(match (dice.roll(4), at) {
        (0, Some(at)) => format!("delete {}|-|-", there.remove(at)),
        (1, Some(at)) => format!("update {}|{v}|{big}", there[at]),
        (2, Some(at)) if there[at] != key && (free(there, &key) || value(&there[at]) == value(&key)) => {
            let old = std::mem::replace(&mut there[at], key.clone());
            format!("rekey {old}|-|- -> {key}|{v}|{big}")
        }
        _ if free(there, &key) => {
            there.push(key.clone());
            format!("insert {key}|{v}|{}", v + 1)
        }
        _ => return None,
    })
}

async fn by_hand(world: &World, time: i64, change: &str) {
    let at = format!("to_timestamp({time})");
    let upsert =
        "ON CONFLICT (id) DO UPDATE SET id = excluded.id, v = excluded.v, big = excluded.big, deleted_at = NULL";
    let cells = |text: &str| text.split('|').map(str::to_owned).collect::<Vec<_>>();
    let insert =
        |new: &[String], big: &str| format!("INSERT INTO by_hand VALUES ({}, '{}', {big}) {upsert}", new[0], new[1]);
    let (verb, rest) = change.split_once(' ').unwrap();
    let sql = match verb {
        "insert" => insert(&cells(rest), &format!("'{}'", cells(rest)[2])),
        "update" => {
            let new = cells(rest);
            let big = if new[2] == "-" { "big".to_owned() } else { format!("'{}'", new[2]) };
            format!("UPDATE by_hand SET v = '{}', big = {big} WHERE id = {}", new[1], new[0])
        }
        "delete" => format!("UPDATE by_hand SET deleted_at = {at} WHERE id = {}", cells(rest)[0]),
        _ => {
            let (old, new) = rest.split_once(" -> ").unwrap();
            let (old, new) = (cells(old), cells(new));
            let big = match new[2].as_str() {
                "-" => format!("(SELECT big FROM by_hand WHERE id = {})", old[0]),
                big => format!("'{big}'"),
            };
            format!("UPDATE by_hand SET deleted_at = {at} WHERE id = {}; {}", old[0], insert(&new, &big))
        }
    };
    world.run(&sql).await;
}

const SCHEMA: &str = "CREATE TABLE public.t (id int PRIMARY KEY, sku text, big text);
ALTER TABLE public.t ALTER big SET STORAGE EXTERNAL;";

/// One sink marks with times, the other with a flag, its partitions written each in its own time.
fn soft(pipeline: Pipeline) -> Pipeline {
    let orders = "[sinks.orders]\ndelete = 'soft'\nevolve = 'add'\n";
    let inventory = "[sinks.inventory]\ndelete = 'soft'\ndeleted_column = 'gone'\n";
    pipeline.connector("public.t", &format!("partitions = 3\n{orders}{inventory}"))
}

const TIMED: &str = "SELECT string_agg(id || coalesce(' ' || (extract(epoch FROM deleted_at) * 1000000)::bigint, ''), ', ' ORDER BY id) FROM t";
const FLAGGED: &str = "SELECT string_agg(id || CASE WHEN gone THEN '-' ELSE '+' END, ' ' ORDER BY id) FROM t";
const LIVING: &str = "SELECT md5(string_agg(ROW(id, sku, big)::text, ',' ORDER BY id)) FROM t";

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_keeps_what_the_source_deletes_and_its_living_rows_are_the_sources() {
    let scene = Scene::bare(LOCKSTEP, "soft", SCHEMA, 2).await;
    scene.sql("INSERT INTO t SELECT i, 's' || i, repeat('b', 3000) FROM generate_series(1, 9) i").await;
    // A unique value of a marked row would stay taken; the column of the times is made here.
    scene.sinks[0].1.execute("CREATE UNIQUE INDEX t_sku ON t (sku)").await.unwrap();
    scene.sinks[1].1.execute("ALTER TABLE t ADD gone bool NOT NULL DEFAULT false").await.unwrap();
    // A member that was killed is missed within this.
    let rows = "consistency = 'row'\nlease_timeout = '6s'";
    let scene = scene.configure(|p| soft(p.set("sinks.inventory", rows)));
    let mut process = scene.spawn(&[]);
    let (message, hint) = halted(&mut process, "SINK_TABLE").await;
    assert!(message.contains("t_sku of public.t compares rows with those that are marked"), "{message}");
    scene.sinks[0].1.execute("ALTER TABLE t ADD deleted_at timestamptz").await.unwrap();
    scene.sinks[0].1.execute(&hint).await.unwrap();
    process.terminate(PATIENCE).await.unwrap();
    let mut process = scene.start().await;

    let (before, at) = (scene.orders(), |n: usize| -> i64 {
        let deletes = read_topic(&scene.services.kafka, &format!("{}.public.t", scene.pipeline.name));
        let times = deletes.iter().filter_map(|seen| seen.value.as_ref()).filter(|value| value["op"] == "d");
        let mut times: Vec<i64> = times.map(|value| value["source"]["ts_us"].as_i64().unwrap()).collect();
        times.sort_unstable();
        times.dedup();
        times[n]
    });
    scene.sql("DELETE FROM t WHERE id IN (1, 2)").await;
    scene.sql("BEGIN; INSERT INTO t VALUES (10, 's1', 'new'); DELETE FROM t WHERE id = 3; UPDATE t SET id = 11 WHERE id = 4; COMMIT").await;
    scene.sql("INSERT INTO t VALUES (2, 's2', 'again')").await;
    scene.streaming(&mut process).await;
    let (first, second) = (at(0), at(1));
    assert_eq!(text(before, TIMED).await, format!("1 {first}, 2, 3 {second}, 4 {second}, 5, 6, 7, 8, 9, 10, 11"));
    assert_eq!(text(&scene.sinks[1].1, FLAGGED).await, "1- 2+ 3- 4- 5+ 6+ 7+ 8+ 9+ 10+ 11+");
    let living = async |scene: &Scene| {
        let source = text(&scene.source, LIVING).await;
        assert_eq!(text(scene.orders(), &format!("{LIVING} WHERE deleted_at IS NULL")).await, source);
        assert_eq!(text(&scene.sinks[1].1, &format!("{LIVING} WHERE NOT gone")).await, source);
    };
    living(&scene).await;

    // Killed in the middle of much, and every row is marked once.
    scene.sql("INSERT INTO t SELECT i, 's' || i, 'x' FROM generate_series(100, 3000) i").await;
    scene.sql("DELETE FROM t WHERE id % 2 = 0; UPDATE t SET big = 'y' WHERE id > 100").await;
    process.kill9().unwrap();
    scene.sql("INSERT INTO t SELECT i, 't' || i, 'z' FROM generate_series(100, 110, 2) i").await;
    let mut process = scene.start().await;
    living(&scene).await;
    assert_eq!(text(scene.orders(), "SELECT count(*) FROM t").await, "2912");

    // What is read again finds what is gone and leaves marked rows as they are.
    scene.sql("TRUNCATE t").await;
    scene.sql("INSERT INTO t VALUES (5, 's5', 'five')").await;
    scene.streaming(&mut process).await;
    living(&scene).await;
    let held =
        "SELECT md5(string_agg(t::text || xmin, ',' ORDER BY id)) FROM t WHERE id > 5 AND deleted_at IS NOT NULL";
    let before = text(scene.orders(), held).await;
    scene
        .orders()
        .execute("UPDATE t SET deleted_at = NULL WHERE id = 1; UPDATE t SET deleted_at = now() WHERE id = 5")
        .await
        .unwrap();
    assert!(scene.pipeline.command(&["resync", "public.t", "--sink", "orders"]).unwrap().status.success());
    wait_text(scene.orders(), "SELECT string_agg(id || '', ' ') FROM t WHERE deleted_at IS NULL", "5", &mut process)
        .await;
    scene.streaming(&mut process).await;
    assert_eq!(text(scene.orders(), held).await, before);

    // Who keeps no marks any more keeps no marked rows; and what is computed is there of rows that nobody touches.
    process.terminate(PATIENCE).await.unwrap();
    scene.sql("SELECT pg_logical_emit_message(true, 'test', '')").await;
    let scene = scene.configure(|p| {
        p.connector(
            "public.t",
            "partitions = 3\n[sinks.orders]\nevolve = 'add'\nvalues.region = { constant = 'eu' }\n[sinks.inventory]\ndelete = 'soft'\ndeleted_column = 'gone'\n",
        )
    });
    let mut process = scene.start().await;
    assert_eq!(text(scene.orders(), "SELECT string_agg(id || region, ' ') FROM t").await, "5eu");
    process.terminate(PATIENCE).await.unwrap();
}
