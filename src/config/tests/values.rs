//! Columns that are computed at a sink.

use super::*;

#[test]
fn values_are_said_as_they_are_shown() {
    let said = "values.\"a b\" = { constant = \"e\\\"u\" }\nvalues.c = { concat = [\"x\", \"y\"], separator = \"-\" }\n\
                values.d = { coalesce = [\"x\"] }\nvalues.l = { lower = \"x\" }\nvalues.t = { trim = \"x\" }\nvalues.u = { upper = \"x\" }\n";
    let text = format!("table = \"t\"\n[sinks.orders]\n{said}");
    let config = Folder::with(&[("lockstep.toml", MAIN), ("connectors/a.toml", &text)]).config();
    let values: Vec<String> =
        config.tables[0].sinks[0].values.iter().map(|v| format!("{} = {}", v.column, v.expression)).collect();
    assert_eq!(values.len(), 6);
    let shown = describe(&config);
    for value in values {
        let (name, expression) = value.split_once(" = ").unwrap();
        assert!(shown.contains(&format!("values.\"{name}\" = {expression}\n")), "{shown}");
    }
}

#[test]
fn what_is_no_value_is_found() {
    let text = "table = \"t\"\n[sinks.orders]\ncolumns = [\"id\", \"x\"]\nvalues.x = { lower = \"id\" }\nvalues.a = {}\n\
                values.b = { upper = \"y\" }\nvalues.c = { constant = \"1\", trim = \"x\" }\nvalues.d = { lower = \"x\", separator = \"-\" }\n\
                values.e = { sum = [\"x\"] }\n";
    let folder = Folder::with(&[("lockstep.toml", MAIN), ("connectors/a.toml", text)]);
    insta::assert_snapshot!(folder.said(), @r#"
    error[CONFIG]: column "x" is computed, and columns takes it from the source
      --> DIR/connectors/a.toml:4:8
      |
    4 | values.x = { lower = "id" }
      |        ^
      help: delete "x" from columns, or the value

    error[CONFIG]: the value of column "a" says nothing
      --> DIR/connectors/a.toml:5:8
      |
    5 | values.a = {}
      |        ^
      help: write { constant = "…" }, or lower, upper, trim, concat or coalesce with columns

    error[CONFIG]: column "b" is made of y, which the sink does not take
      --> DIR/connectors/a.toml:6:8
      |
    6 | values.b = { upper = "y" }
      |        ^
      help: write "y" into columns

    error[CONFIG]: the value of column "c" is given twice
      --> DIR/connectors/a.toml:7:37
      |
    7 | values.c = { constant = "1", trim = "x" }
      |                                     ^^^
      help: delete one of them

    error[CONFIG]: separator has no effect without concat
      --> DIR/connectors/a.toml:8:39
      |
    8 | values.d = { lower = "x", separator = "-" }
      |                                       ^^^
      help: delete separator

    error[CONFIG]: the value of column "e" says nothing
      --> DIR/connectors/a.toml:9:8
      |
    9 | values.e = { sum = ["x"] }
      |        ^
      help: write { constant = "…" }, or lower, upper, trim, concat or coalesce with columns

    error[CONFIG]: unknown key "sum" in [sinks.orders.values.e]
      --> DIR/connectors/a.toml:9:14
      |
    9 | values.e = { sum = ["x"] }
      |              ^^^
      help: delete it; keys in [sinks.orders.values.e] are: coalesce, concat, constant, lower, separator, trim, upper

    7 findings in 1 file; nothing was started
    "#);
}
