//! Columns that tell rows of several tables apart.

use super::*;

/// Names of tables with their topics, tables of sinks and added columns; and what is left out.
fn resolved(files: &[(&str, &str)], names: &[&str]) -> (Vec<String>, Vec<String>) {
    let files: Vec<(&str, &str)> = [("lockstep.toml", MAIN)].into_iter().chain(files.iter().copied()).collect();
    let names: Vec<TableName> =
        names.iter().map(|name| name.split_once('.').unwrap()).map(|(s, t)| TableName::new(s, t)).collect();
    let (config, left_out) = Folder::with(&files).config().resolve(&names);
    let shown = |table: &Table| {
        let sinks: Vec<String> = table.sinks.iter().map(|sink| sink.table.to_string()).collect();
        let held: Vec<String> = table.shape.constants.iter().map(|c| format!("{}={}", c.column, c.value)).collect();
        format!("{} -> {} -> {} with {}", table.name, table.topic, sinks.join(", "), held.join(", "))
    };
    (config.tables.iter().map(shown).collect(), left_out.iter().map(ToString::to_string).collect())
}

const SHARED: &str = "topic = \"{prefix}.orders\"\n[add_columns]\ntenant = \"{schema}\"\nkind = \"{{{table}}}\"\n\
                      [sinks.orders]\ntable = \"shared.orders\"\n";

#[test]
fn tables_whose_rows_are_told_apart_share_a_topic_and_a_table() {
    let pattern = format!("table = \"tenant_*.orders\"\n{}", SHARED.replace("{schema}", "{schema.1}"));
    let list = format!("table = [\"a.x\", \"b.x\"]\n{}", SHARED.replace("orders\"\n", "xs\"\n"));
    let files = [("connectors/a.toml", pattern.as_str()), ("connectors/b.toml", &list)];
    let (tables, left_out) = resolved(&files, &["tenant_1.orders", "tenant_2.orders"]);
    insta::assert_debug_snapshot!((tables, left_out), @r#"
    (
        [
            "a.x -> shop.xs -> shared.xs with kind={x}, tenant=a",
            "b.x -> shop.xs -> shared.xs with kind={x}, tenant=b",
            "tenant_1.orders -> shop.orders -> shared.orders with kind={orders}, tenant=1",
            "tenant_2.orders -> shop.orders -> shared.orders with kind={orders}, tenant=2",
        ],
        [],
    )
    "#);
    let shown = describe(&Folder::with(&[("lockstep.toml", MAIN), files[0], files[1]]).config());
    assert_eq!(shown.matches("[connectors.add_columns]").count(), 3, "{shown}");
    assert!(shown.contains("\"kind\" = \"{{{table}}}\"") && shown.contains("\"kind\" = \"{{x}}\""), "{shown}");
}

#[test]
fn tables_that_nothing_tells_apart_are_left_out_by_name() {
    let same = "table = \"tenant_*.o*\"\ntopic = \"orders.{table}\"\n[add_columns]\nwhich = \"{schema}{table}\"\n\
                [sinks.orders]\ntable = \"shared.orders\"\n";
    let other =
        "table = \"other.*\"\npartitions = 2\ntopic = \"orders.{table}\"\n[add_columns]\nwhich = \"{schema}\"\n";
    let plain = "table = \"plain.*\"\n[sinks.orders]\ntable = 'shared.{table}'\n";
    let named = "table = \"named.*\"\n[add_columns]\nwho = \"{schema}\"\n[sinks.orders]\ntable = 'shared.{table}'\n";
    let files = [
        ("connectors/a.toml", same),
        ("connectors/b.toml", other),
        ("connectors/c.toml", plain),
        ("connectors/d.toml", named),
    ];
    let names = ["tenant_1.o", "tenant_1.ooo", "tenant_1o.oo", "other.o", "plain.orders", "named.orders"];
    let (tables, left_out) = resolved(&files, &names);
    assert_eq!(tables.len(), 2, "{tables:?}");
    let said = left_out.join("\n");
    for why in [
        "table tenant_1o.oo matches a pattern and is left out: table tenant_1.ooo goes into shared.orders of sink \"orders\" too: \
         [add_columns] of both has which = \"tenant_1ooo\"",
        "its topic \"orders.o\" is that of table tenant_1.o: partitions of one is 2, of the other 1",
        "table tenant_1.o goes into shared.orders of sink \"orders\" too: nothing tells their keys apart",
        "table tenant_1.o goes into shared.orders of sink \"orders\" too: [add_columns] of one has who, of the other which",
    ] {
        assert!(said.contains(why), "{why}: {said}");
    }
}

#[test]
fn findings_of_added_columns() {
    let folder = Folder::with(&[
        ("lockstep.toml", MAIN),
        (
            "connectors/a.toml",
            "table = [\"a.t\", \"b.t\"]\ncolumns = [\"id\", \"x\"]\ntopic = \"t\"\n[add_columns]\nx = \"one\"\ny = \"{tenant}\"\n\
             [sinks.orders]\nevolve = \"full\"\n",
        ),
        ("connectors/b.toml", "table = [\"b_*.t\", \"b.*\"]\n[add_columns]\nx = \"{schema.1}{table}\"\n"),
        ("connectors/c.toml", "table = \"c.t\"\n[add_columns]\nx = 1\n"),
        ("connectors/d.toml", "table = \"d.t\"\n[add_columns]\nx = \"a\"\n[outbox]\n"),
    ]);
    insta::assert_snapshot!(folder.said(), @r#"
    error[CONFIG]: columns names column "x", which [add_columns] adds
      --> DIR/connectors/a.toml:2:18
      |
    2 | columns = ["id", "x"]
      |                  ^^^
      help: delete it from columns: it is in every record, in front of the key

    error[CONFIG]: topic lacks {schema}: tables that differ in it would share one topic
      --> DIR/connectors/a.toml:3:9
      |
    3 | topic = "t"
      |         ^^^
      help: write topic = "….{schema}", or delete the line; or tell their rows apart by a column of [add_columns] with {schema}

    error[CONFIG]: tables a.t and b.t share topic "t": [add_columns] of both has x = "one"
      --> DIR/connectors/a.toml:3:9
      |
    3 | topic = "t"
      |         ^^^
      help: write topic = "…" with another name into this file, or into the other: DIR/connectors/a.toml:3:9; or tell their rows apart by a column of [add_columns]

    error[CONFIG]: "{tenant}" is no placeholder; there are {schema}, {table}, {schema.1} …
      --> DIR/connectors/a.toml:6:5
      |
    6 | y = "{tenant}"
      |     ^^^^^^^^^^
      help: write one of them, or {{tenant}} for the text

    error[CONFIG]: evolve = "full" of sink "orders" would drop and rename columns that other tables' rows have
      --> DIR/connectors/a.toml:7:8
      |
    7 | [sinks.orders]
      |        ^^^^^^
      help: write evolve = "add" under [sinks.orders], or delete the line

    error[CONFIG]: x is {schema.1}{table}, and b.* has no such * in {schema}
      --> DIR/connectors/b.toml:3:1
      |
    3 | x = "{schema.1}{table}"
      | ^
      help: write {schema} for the whole name, or a connector of its own for b.*

    error[CONFIG]: x must be a string, found an integer
      --> DIR/connectors/c.toml:3:5
      |
    3 | x = 1
      |     ^
      help: write x = "…"

    error[CONFIG]: events of an outbox have keys of their own, and no columns to add
      --> DIR/connectors/d.toml:4:2
      |
    4 | [outbox]
      |  ^^^^^^
      help: delete [add_columns]

    8 findings in 4 files; nothing was started
    "#);
}
