//! Deleted rows that stay at a sink.

use super::*;

#[test]
fn a_mark_is_a_column_that_only_the_sink_has() {
    let of = |more: &str| {
        let text = format!("table = \"t\"\n[sinks.orders]\ndelete = \"soft\"\n{more}");
        Folder::with(&[("lockstep.toml", MAIN), ("connectors/a.toml", &text)]).config()
    };
    assert_eq!(of("").tables[0].sinks[0].delete.mark(), Some("deleted_at"));
    let config = of("deleted_column = \"Gone\"\n");
    assert_eq!(config.tables[0].sinks[0].delete.mark(), Some("Gone"));
    assert!(describe(&config).contains("delete = \"soft\"\ndeleted_column = \"Gone\"\n"));
}

#[test]
fn what_does_not_go_with_marks_is_found() {
    let soft = "table = \"t\"\nsnapshot = \"never\"\n[sinks.orders]\ndelete = \"soft\"\ntruncate = \"delete\"\non_missing = \"skip\"\ncolumns = [\"id\", \"deleted_at\"]\n";
    let rows = "table = \"u\"\n[sinks.orders]\ndeleted_column = \"gone\"\n";
    let folder = Folder::with(&[("lockstep.toml", MAIN), ("connectors/a.toml", soft), ("connectors/b.toml", rows)]);
    insta::assert_snapshot!(folder.said(), @r#"
    error[CONFIG]: on_missing = "skip" of sink "orders" with delete = "soft": nobody could tell rows that were never read from rows that are marked
      --> DIR/connectors/a.toml:3:8
      |
    3 | [sinks.orders]
      |        ^^^^^^
      help: write delete = "row", or snapshot = "initial" above the sections

    error[CONFIG]: truncate = "delete" deletes rows, and delete = "soft" keeps them
      --> DIR/connectors/a.toml:5:12
      |
    5 | truncate = "delete"
      |            ^^^^^^^^
      help: delete the line: each row is marked

    error[CONFIG]: deleted_at is a column of the source, and is to be the mark of deleted rows
      --> DIR/connectors/a.toml:7:18
      |
    7 | columns = ["id", "deleted_at"]
      |                  ^^^^^^^^^^^^
      help: write deleted_column = "…", a column that only the sink has

    error[CONFIG]: deleted_column has no effect: delete is not "soft"
      --> DIR/connectors/b.toml:3:18
      |
    3 | deleted_column = "gone"
      |                  ^^^^^^
      help: delete the line, or write delete = "soft"

    4 findings in 2 files; nothing was started
    "#);
}
