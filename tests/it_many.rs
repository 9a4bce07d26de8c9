//! Several tables of the source in one topic and in one table of a sink: each one's rows are its own, whatever happens to the others.

mod support;

use support::scene::{PATIENCE, Scene, read_topic, text, wait_text};
use support::{Process, Status};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

const ORDERS: &str = "topic = '{prefix}.orders'\n[add_columns]\ntenant = '{schema}'\n\
                      [sinks.orders]\ntable = 'shared.orders'\nevolve = 'add'\n";
const EVENTS: &str = "topic = '{prefix}.events'\n[add_columns]\ntenant = '{schema}'\n\
                      [sinks.orders]\ntable = 'shared.events'\n";
/// No sink of ours.
const LOGS: &str = "topic = '{prefix}.logs'\n[add_columns]\ntenant = '{schema}'\n";

const SHARED: &str = "
    CREATE SCHEMA shared;
    CREATE TABLE shared.orders (tenant text, id int, sku text NOT NULL, note text, PRIMARY KEY (tenant, id), UNIQUE (tenant, sku));
    CREATE TABLE shared.events (tenant text NOT NULL, what text);
    INSERT INTO shared.orders VALUES ('elsewhere', 1, 'x', 'another pipeline''s'), ('elsewhere', 2000, 'y', 'too');
    INSERT INTO shared.events VALUES ('elsewhere', 'another pipeline''s')";

fn tenant(name: &str) -> String {
    format!(
        "CREATE SCHEMA {name};
         CREATE TABLE {name}.orders (id int PRIMARY KEY, sku text NOT NULL UNIQUE, note text);
         CREATE TABLE {name}.events (what text); ALTER TABLE {name}.events REPLICA IDENTITY FULL;
         CREATE TABLE {name}.logs (id int PRIMARY KEY, line text);
         INSERT INTO {name}.orders SELECT i, 's' || i, '{name}' FROM generate_series(1, 40) i;
         INSERT INTO {name}.events SELECT 'e' || i % 3 FROM generate_series(1, 9) i;
         INSERT INTO {name}.logs VALUES (1, '{name}')"
    )
}

/// Waits until what the sink holds of these tenants is what they hold, and nothing else is there but the other pipeline's rows.
async fn equal(scene: &Scene, process: &mut Process, tenants: &[&str]) {
    let all = |table: &str, columns: &str| {
        let of = tenants.iter().map(|t| format!("SELECT '{t}' AS tenant, {columns} FROM {t}.{table}"));
        format!("({})", of.collect::<Vec<_>>().join(" UNION ALL "))
    };
    for (table, columns) in [("orders", "id, sku, note"), ("events", "what")] {
        let sum = |from: String| format!("SELECT md5(string_agg(r::text, '|' ORDER BY r::text)) FROM {from} r");
        let wanted = text(&scene.source, &sum(all(table, columns))).await;
        let held = format!("(SELECT tenant, {columns} FROM shared.{table} WHERE tenant <> 'elsewhere')");
        wait_text(scene.orders(), &sum(held), &wanted, process).await;
    }
    let others = "SELECT (SELECT count(*) FROM shared.orders WHERE tenant = 'elsewhere') || ' ' ||
                         (SELECT count(*) FROM shared.events WHERE tenant = 'elsewhere')";
    assert_eq!(text(scene.orders(), others).await, "2 1", "rows of another pipeline");
}

/// Which versions of the rows the sink holds of a tenant.
async fn versions(scene: &Scene, tenant: &str) -> String {
    let sum = |table: &str| {
        format!(
            "SELECT coalesce(string_agg(xmin::text || ctid::text, ',' ORDER BY ctid), '') FROM shared.{table} WHERE tenant = '{tenant}'"
        )
    };
    text(scene.orders(), &format!("SELECT ({}) || ' ' || ({})", sum("orders"), sum("events"))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_share_topics_and_tables_of_a_sink() {
    let schema = ["tenant_a", "tenant_b", "tenant_c"].map(tenant).join(";");
    let full = "ALTER TABLE tenant_b.orders REPLICA IDENTITY FULL";
    let scene = Scene::bare(LOCKSTEP, "many", "", 1).await;
    scene.sql(&format!("{schema}; {full}")).await;
    scene.orders().execute(SHARED).await.unwrap();
    // Before the first key and behind the last one, where a chunk has no borders.
    let phantoms =
        "INSERT INTO shared.orders VALUES ('tenant_a', -5, 'p1', 'phantom'), ('tenant_a', 1000, 's7', 'phantom');
                    INSERT INTO shared.events VALUES ('tenant_a', 'phantom')";
    scene.orders().execute(phantoms).await.unwrap();
    let scene = scene.configure(|p| {
        let p = p.connector_file("orders", "tenant_*.orders", ORDERS).connector_file("logs", "tenant_*.logs", LOGS);
        p.connector_file("events", "tenant_*.events", EVENTS).set("source.snapshot", "chunk_rows = 10")
    });
    let mut process = scene.start().await;
    let abc = ["tenant_a", "tenant_b", "tenant_c"];
    equal(&scene, &mut process, &abc).await;

    // Equal keys in one transaction; a key that moves; a unique value that is handed over.
    let changes = abc.map(|t| {
        format!(
            "INSERT INTO {t}.orders VALUES (100, 'new', 'n'); UPDATE {t}.orders SET note = note || ' changed' WHERE id < 5;
             DELETE FROM {t}.orders WHERE id = 10; UPDATE {t}.orders SET id = 200 WHERE id = 11;
             UPDATE {t}.orders SET sku = 'tmp' WHERE id = 20; UPDATE {t}.orders SET sku = 's20' WHERE id = 21;
             UPDATE {t}.orders SET sku = 's21' WHERE id = 20;
             DELETE FROM {t}.events WHERE ctid = (SELECT ctid FROM {t}.events WHERE what = 'e1' LIMIT 1);
             UPDATE {t}.events SET what = 'e9' WHERE what = 'e2'"
        )
    });
    scene.sql(&format!("BEGIN; {}; COMMIT", changes.join(";"))).await;
    equal(&scene, &mut process, &abc).await;

    // A TRUNCATE of one, and of two at once.
    let c = versions(&scene, "tenant_c").await;
    scene.sql("TRUNCATE tenant_a.orders; INSERT INTO tenant_a.orders VALUES (1, 'one', 'after')").await;
    scene
        .sql(
            "TRUNCATE tenant_a.orders, tenant_b.orders, tenant_a.events, tenant_b.events;
             INSERT INTO tenant_b.orders SELECT i, 't' || i, 'after' FROM generate_series(1, 15) i",
        )
        .await;
    equal(&scene, &mut process, &abc).await;
    assert_eq!(versions(&scene, "tenant_c").await, c, "rows of a table that nobody truncated");

    // A tenant that comes while everything runs, and a column that comes with each table.
    scene.sql(&tenant("tenant_d")).await;
    let abcd = ["tenant_a", "tenant_b", "tenant_c", "tenant_d"];
    equal(&scene, &mut process, &abcd).await;
    scene.sql("ALTER TABLE tenant_b.orders ADD COLUMN extra int DEFAULT 7").await;
    scene.sql("INSERT INTO tenant_b.orders VALUES (50, 'fifty', 'b', 8); INSERT INTO tenant_c.orders VALUES (50, 'fifty', 'c')").await;
    equal(&scene, &mut process, &abcd).await;
    scene.sql("ALTER TABLE tenant_c.orders ADD COLUMN extra int DEFAULT 9").await;
    let extra = "SELECT string_agg(tenant || coalesce(extra, 0) || '*' || n, ' ' ORDER BY 1, extra) FROM
                 (SELECT tenant, extra, count(*) AS n FROM shared.orders WHERE id > 11 AND tenant ~ '^tenant_[bc]' GROUP BY 1, 2) s";
    wait_text(scene.orders(), extra, "tenant_b7*4 tenant_b8*1 tenant_c9*32", &mut process).await;
    equal(&scene, &mut process, &abcd).await;

    // One of them is read again: what should not be there goes with it, and nobody else's row is touched.
    scene.streaming(&mut process).await;
    let (b, c) = (versions(&scene, "tenant_b").await, versions(&scene, "tenant_c").await);
    let plant = "INSERT INTO shared.orders VALUES ('tenant_b', -1, 'p', 'phantom'), ('tenant_b', 999, 'q', 'phantom'), ('tenant_c', 999, 'q', 'kept');
                 INSERT INTO shared.events VALUES ('tenant_d', 'phantom')";
    scene.orders().execute(plant).await.unwrap();
    for table in ["tenant_b.orders", "tenant_d.events"] {
        let resync = scene.pipeline.command(&["resync", table, "--sink", "orders"]).unwrap();
        assert!(resync.status.success(), "{}", String::from_utf8_lossy(&resync.stderr));
    }
    let phantoms =
        "SELECT string_agg(tenant, ',') FROM (SELECT tenant FROM shared.orders WHERE note IN ('phantom', 'kept')
                    UNION ALL SELECT tenant FROM shared.events WHERE what = 'phantom') s";
    wait_text(scene.orders(), phantoms, "tenant_c", &mut process).await;
    scene.orders().execute("DELETE FROM shared.orders WHERE note = 'kept'").await.unwrap();
    assert_eq!(versions(&scene, "tenant_b").await, b, "rows that were right already");
    assert_eq!(versions(&scene, "tenant_c").await, c, "a table that was not read again");

    // Changes under a load, which is killed in the middle; and a tenant that comes meanwhile.
    scene.sql("INSERT INTO tenant_a.orders SELECT i, 'k' || i, 'kill' FROM generate_series(1, 500) i").await;
    assert!(scene.pipeline.command(&["resync", "tenant_a.orders"]).unwrap().status.success());
    for i in 1..80 {
        scene.sql(&format!("UPDATE tenant_a.orders SET note = 'u{i}' WHERE id % 80 = {i}")).await;
        if i == 60 {
            process.kill9().unwrap();
        }
    }
    scene.sql(&tenant("tenant_e")).await;
    scene.sql("UPDATE tenant_c.orders SET note = 'c' WHERE id < 20; DELETE FROM tenant_d.orders").await;
    let mut process = scene.start().await;
    equal(&scene, &mut process, &["tenant_a", "tenant_b", "tenant_c", "tenant_d", "tenant_e"]).await;

    // One that goes leaves its rows; made again, it takes their place.
    scene.sql("DROP SCHEMA tenant_d CASCADE").await;
    scene.sql("DROP SCHEMA tenant_c CASCADE; INSERT INTO tenant_a.orders VALUES (-1, 'minus', 'a')").await;
    wait_text(scene.orders(), "SELECT note FROM shared.orders WHERE id = -1", "a", &mut process).await;
    assert_ne!(text(scene.orders(), "SELECT count(*) FROM shared.orders WHERE tenant = 'tenant_c'").await, "0");
    scene.sql(&format!("{}; DELETE FROM tenant_c.orders WHERE id > 3", tenant("tenant_c"))).await;
    scene.orders().execute("DELETE FROM shared.events WHERE tenant = 'tenant_d'").await.unwrap();
    equal(&scene, &mut process, &["tenant_a", "tenant_b", "tenant_c", "tenant_e"]).await;
    records(&scene);

    // Other values are other rows, and those under the values before are nobody's.
    process.terminate(PATIENCE).await.unwrap();
    let numbered = ORDERS.replace("{schema}", "{schema.1}");
    let scene = scene.configure(|p| p.connector_file("orders", "tenant_*.orders", &numbered));
    let mut process = scene.spawn(&[]);
    let halted = |s: &Status| s.halt_code(Some("orders")) == Some("SINK_TABLE");
    process.wait_until("rows under earlier values are named", PATIENCE, halted).await.unwrap();
    let hint = process.status().await.unwrap().0["sinks"]["orders"]["halt"]["hint"].as_str().unwrap().to_owned();
    assert!(
        hint.starts_with("DELETE FROM \"shared\".\"orders\" WHERE \"tenant\" OPERATOR(pg_catalog.=) 'tenant_"),
        "{hint}"
    );
    process.terminate(PATIENCE).await.unwrap();
    scene.orders().execute("DELETE FROM shared.orders WHERE tenant ~ '^tenant_'").await.unwrap();
    let mut process = scene.spawn(&[]);
    let held = "SELECT string_agg(tenant || n, ' ' ORDER BY tenant) FROM
                (SELECT tenant, count(*) AS n FROM shared.orders GROUP BY 1) s";
    wait_text(scene.orders(), held, "a501 b16 c3 e40 elsewhere2", &mut process).await;
}

/// What any consumer sees of the topics.
fn records(scene: &Scene) {
    let (brokers, prefix) = (&scene.services.kafka, &scene.pipeline.name);
    for (topic, tenants) in [("orders", 5), ("logs", 5)] {
        let seen = read_topic(brokers, &format!("{prefix}.{topic}"));
        let mut found = std::collections::BTreeSet::new();
        for record in &seen {
            let Some(value) = &record.value else { continue };
            let (source, row) =
                (&value["source"], if value["after"].is_null() { &value["before"] } else { &value["after"] });
            assert_eq!(source["table"], topic);
            if value["op"] == "t" {
                continue;
            }
            assert_eq!(row["tenant"], source["schema"], "{value}");
            let key: serde_json::Value = serde_json::from_str(record.key.as_deref().unwrap()).unwrap();
            assert_eq!(key, serde_json::json!({ "tenant": row["tenant"], "id": row["id"] }));
            found.insert(source["schema"].as_str().unwrap().to_owned());
        }
        assert_eq!(found.len(), tenants, "{topic}: {found:?}");
    }
}
