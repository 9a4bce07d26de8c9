//! What shapes records and topics.

use super::*;

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
