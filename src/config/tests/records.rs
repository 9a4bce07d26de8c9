//! What shapes records and topics.

use super::*;
use crate::relation::Format;
use crate::relation::outbox::EventFormat;

/// One table that no sink takes, and what its file says besides.
fn table(main: &str, connector: &str) -> Folder {
    let main = format!(
        "name = \"shop\"\n[source]\nurl = \"postgres://u@127.0.0.1/catalog\"\n[kafka]\nbrokers = \"k:9092\"\n{main}"
    );
    Folder::with(&[("lockstep.toml", &main), ("connectors/t.toml", &format!("table = \"public.t\"\n{connector}"))])
}

#[test]
fn topics_have_placeholders_and_another_delimiter() {
    let config = table("topic_delimiter = \"_\"\n[wire]\ntransaction_metadata = true\n", "").config();
    assert_eq!(config.tables[0].topic, "shop_public_t");
    assert_eq!(config.wire.transaction_topic.as_deref(), Some("shop_transaction"));
    assert_eq!(config.kafka.ledger, "shop.ledger");
    let config = table("", "topic = \"x.{schema}-{table}.{prefix}\"").config();
    assert_eq!(config.tables[0].topic, "x.public-t.shop");
}

#[test]
fn what_is_no_topic_is_said() {
    let shared = Folder::with(&[
        ("lockstep.toml", &MAIN.replace("[sinks.orders]\nurl", "topic_delimiter = \"_\"\n[http]\n#")),
        ("connectors/a.toml", "table = \"a.b_c\""),
        ("connectors/b.toml", "table = \"a_b.c\""),
    ]);
    let all = [
        table("topic_delimiter = \"/\"\n", "topic = \"{tabel}\"").said(),
        table("", "topic = \"a/{table}\"").said(),
        shared.said(),
    ];
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn flat_records_are_said_key_by_key() {
    let main = "[wire]\nskipped_operations = [\"t\"]\nadd_fields = [\"op\", \"source.ts_ms:at\"]\nadd_headers_prefix = \"h_\"\n";
    let connector = "[wire]\nrecords = \"flat\"\ndelete_tombstone_handling = \"rewrite\"\nadd_headers = [\"lsn\"]\n";
    let config = table(main, connector).config();
    let flat = config.tables[0].wire.modes.flat.as_ref().unwrap();
    let names = |list: &[crate::relation::flat::Added]| list.iter().map(|a| a.name.clone()).collect::<Vec<_>>();
    assert_eq!(flat.deletes, crate::relation::flat::DeleteMode::Rewrite);
    assert_eq!((names(&flat.fields), names(&flat.headers)), (vec!["__op".into(), "__at".into()], vec!["h_lsn".into()]));
    assert_eq!(config.wire.tables.modes.flat, None);
}

#[test]
fn what_flat_records_do_not_go_with_is_said() {
    let flat = "[wire]\nrecords = \"flat\"\n";
    let all = [
        Folder::with(&[
            ("lockstep.toml", MAIN),
            ("connectors/t.toml", &format!("table = \"t\"\n{flat}[sinks.orders]\n")),
        ])
        .said(),
        table(
            "",
            &format!("{flat}skipped_operations = [\"t\"]\nadd_fields = [\"befor\", \"op\", \"source.ts_ms:op\"]\n"),
        )
        .said(),
    ];
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn an_outbox_is_said_in_its_connector() {
    let connector = "[outbox]\ntopic = \"{prefix}.{table}.{route}\"\nkey_field = \"k\"\ntimestamp_field = \"at\"\n\
                     additional_placement = [\"type:header:eventType\", \"part:partition\"]\n";
    let config = table("", connector).config();
    let outbox = config.tables[0].wire.modes.outbox.as_ref().unwrap();
    assert_eq!(outbox.topic, "shop.t.{route}");
    assert_eq!((outbox.columns.key.as_str(), outbox.columns.route.as_str()), ("k", "aggregatetype"));
    assert_eq!((outbox.columns.timestamp.as_deref(), outbox.partition()), (Some("at"), Some("part")));
    let described = describe(&config);
    assert!(
        described.contains("additional_placement = [\"type:header:eventType\", \"part:partition\"]"),
        "{described}"
    );
    assert!(
        described.contains("timestamp_field = \"at\"") && !described.contains("schema_version_field"),
        "{described}"
    );
    assert_eq!(table("", "").config().tables[0].wire.modes.outbox, None);
    let of = |connector: &str| {
        let config = table("[registry]\nurl = \"http://r\"\n[wire]\nformat = \"avro\"\n", connector).config();
        let table = &config.tables[0];
        (table.wire.format, table.wire.modes.outbox.as_ref().unwrap().format)
    };
    // As the table's records would be, unless it says otherwise itself.
    assert_eq!(of("[outbox]\n"), (Format::Avro, EventFormat::Avro));
    assert_eq!(of("[outbox]\nformat = \"bytes\"\n"), (Format::Json, EventFormat::Bytes));
    let said = table("", "[outbox]\nformat = \"avro\"\n").said();
    assert!(said.contains("registry"), "{said}");
    let default = table("", "[outbox]\n").config();
    assert_eq!(default.tables[0].wire.modes.outbox.as_ref().unwrap().topic, "shop.event.{route}");
}

#[test]
fn what_an_outbox_does_not_go_with_is_said() {
    let twice = Folder::with(&[
        ("lockstep.toml", &MAIN.replace("[sinks.orders]\nurl", "[http]\n#")),
        ("connectors/a.toml", "table = \"a\"\n[outbox]\n"),
        ("connectors/b.toml", "table = \"b\"\n[outbox]\n"),
    ]);
    let wrong = "topic = \"x.{rout}\"\nadditional_placement = [\"type:head\", \"a:header:id\"]\ninvalid_operations = \"fail\"\n";
    let all = [
        Folder::with(&[("lockstep.toml", MAIN), ("connectors/t.toml", "table = \"t\"\n[outbox]\n[sinks.orders]\n")])
            .said(),
        table(
            "[registry]\nurl = \"http://r\"\n",
            "[wire]\nformat = \"avro\"\nrecords = \"flat\"\nskipped_operations = [\"t\"]\n[outbox]\n",
        )
        .said(),
        table("", &format!("[outbox]\n{wrong}")).said(),
        table("", "[outbox]\nformat = \"string\"\nexpand_json_payload = true\n").said(),
        table(
            "",
            "[outbox]\nschema_version_field = \"v\"\nadditional_placement = [\"a:partition\", \"b:partition\", \"c:partition:d\"]\n",
        )
        .said(),
        twice.said(),
    ];
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn a_snapshot_has_a_condition_where_no_sink_is() {
    let config = table("", "[wire]\nsnapshot_where = \"(a = 1 OR b = 'it''s (') AND \\\"x;y\\\" > 0\"\n").config();
    let only = config.tables[0].wire.modes.snapshot_where.as_deref();
    assert_eq!(only, Some("(a = 1 OR b = 'it''s (') AND \"x;y\" > 0"));
    for wrong in ["a) OR (b", "(a", "a = 'x", "a; DROP", "a -- x", "a /* x", " "] {
        let said = table("", &format!("[wire]\nsnapshot_where = \"{wrong}\"\n")).said();
        assert!(said.contains("snapshot_where must be one SQL condition"), "{wrong}: {said}");
    }
    let connector = "table = 't'\n[wire]\nsnapshot_where = 'true'\n[sinks.orders]\n";
    let said = Folder::with(&[("lockstep.toml", MAIN), ("connectors/t.toml", connector)]).said();
    assert!(said.contains("snapshot_where leaves rows out, but sink \"orders\" takes this table"), "{said}");
}

#[test]
fn whose_rows_are_told_of_is_said_by_each_table() {
    let mode = |main: &str, connector: &str| table(main, connector).config().tables[0].snapshot;
    assert_eq!(mode("", ""), Snapshot::Initial);
    assert_eq!(mode("[wire]\nsnapshot = \"no_data\"\n", ""), Snapshot::Never);
    assert_eq!(mode("[wire]\nsnapshot = \"no_data\"\n", "snapshot = \"initial\"\n"), Snapshot::Initial);
    assert_eq!(mode("", "[wire]\nsnapshot = \"never\"\n"), Snapshot::Never);
    let only = table("", "snapshot = \"initial_only\"\n").config().tables.remove(0);
    assert_eq!((only.snapshot, only.wire.modes.skipped.as_str()), (Snapshot::Only, "cdtu"));
    let sink = |connector: &str| {
        let text = format!("table = \"t\"\n{connector}");
        Folder::with(&[
            ("lockstep.toml", &format!("{MAIN}[wire]\nsnapshot = \"no_data\"\n")),
            ("connectors/t.toml", &text),
        ])
    };
    let of_sink = |connector: &str| sink(connector).config().tables.remove(0);
    assert_eq!(of_sink("[sinks.orders]\n").snapshot, Snapshot::Initial, "what topics have is not what sinks have");
    assert_eq!(of_sink("insert_only = true\nsnapshot = \"never\"\n[sinks.orders]\n").snapshot, Snapshot::Never);
    let skips = of_sink("snapshot = \"never\"\n[sinks.orders]\non_missing = \"skip\"\n");
    assert_eq!((skips.sinks[0].on_missing, skips.sinks[0].snapshot), (OnMissing::Skip, Snapshot::Never));
    let all = [
        sink("snapshot = \"never\"\n[sinks.orders]\n").said(),
        sink("snapshot = \"only\"\n[sinks.orders]\n").said(),
        sink("[sinks.orders]\non_missing = \"skip\"\n").said(),
        sink("snapshot = \"nevr\"\n[sinks.orders]\n").said(),
    ];
    insta::assert_snapshot!(all.join("\n"), @r#"
    error[CONFIG]: snapshot = "never": sink "orders" never gets the rows that are there, and a change of one would halt it
      --> DIR/connectors/t.toml:3:8
      |
    3 | [sinks.orders]
      |        ^^^^^^
      help: write on_missing = "skip" under [sinks.orders], or insert_only = true, or snapshot = "initial"

    1 finding in 1 file; nothing was started
    error[CONFIG]: snapshot = "only" tells of no change, so sink "orders" would be equal to nothing that the source ever was
      --> DIR/connectors/t.toml:1:9
      |
    1 | table = "t"
      |         ^^^
      help: write snapshot = "initial", or delete [sinks] from this connector

    1 finding in 1 file; nothing was started
    error[CONFIG]: on_missing = "skip" would hide that sink "orders", which is copied whole, has lost rows
      --> DIR/connectors/t.toml:2:8
      |
    2 | [sinks.orders]
      |        ^^^^^^
      help: delete on_missing, or write snapshot = "never" above the sections

    1 finding in 1 file; nothing was started
    error[CONFIG]: snapshot must be one of initial, never, only, no_data, initial_only, found "nevr"
      --> DIR/connectors/t.toml:2:12
      |
    2 | snapshot = "nevr"
      |            ^^^^^^
      help: did you mean snapshot = "never"?

    1 finding in 1 file; nothing was started
    "#);
}
