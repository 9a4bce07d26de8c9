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
