//! `[topics]` in the place of `[source]`.

use super::*;

const MAIN: &str = "name = 'shop'\n[topics]\nwritten_by = 'debezium'\nschemas = true\n[kafka]\nbrokers = 'k:9092'\n\
    [sinks.orders]\nurl = 'postgres://u@127.0.0.1/orders'\n";

fn folder(main: &str, connector: &str) -> Folder {
    Folder::with(&[("lockstep.toml", main), ("connectors/products.toml", connector)])
}

#[test]
fn topics_of_another_program_need_no_source() {
    let config = folder(MAIN, PRODUCTS).config();
    let topics = config.topics.clone().unwrap();
    assert_eq!(
        (topics.start, topics.modes.schemas, topics.modes.decimal),
        (Start::Beginning, true, DecimalMode::Precise)
    );
    assert_eq!(
        (config.tables[0].topic.as_str(), config.sinks[0].consistency),
        ("shop.public.products", Consistency::Row)
    );
    assert!(
        describe(&config).contains("\n[topics]\nwritten_by = \"debezium\"\n")
            && !describe(&config).contains("[source]")
    );
}

#[test]
fn what_is_debeziums_to_be_told_is_refused() {
    let said = folder(
        MAIN,
        "table = 'products'\nexclude_columns = ['x']\n[wire]\ndecimal_handling = 'double'\n[sinks.orders]\n",
    )
    .said();
    assert!(said.contains("columns, masks, key, constants or where of table public.products"), "{said}");
    assert!(said.contains("[wire], or what else shapes records, of table public.products"), "{said}");
    let soft = "table = 'products'\n[sinks.orders]\ndelete = 'soft'\n";
    assert!(
        folder(MAIN, soft)
            .said()
            .contains("delete = \"soft\" of sink \"orders\" is for rows that are read from a [source]")
    );
    assert!(folder(MAIN, "table = 'prod*'\n[sinks.orders]\n").said().contains("a pattern in the place of table"));
}

#[test]
fn without_schemas_the_modes_are_said() {
    let said = folder(&MAIN.replace("schemas = true\n", ""), PRODUCTS).said();
    for key in ["decimal_handling", "time_precision", "binary_handling"] {
        assert!(said.contains(&format!("JSON without schemas does not say what {key} its writer has")), "{said}");
    }
    let both = MAIN.replace("[kafka]", "[source]\nurl = 'postgres://u@127.0.0.1/c'\n[kafka]");
    assert!(folder(&both, PRODUCTS).said().contains("[source] and [topics]"));
    assert!(folder(&MAIN.replace("written_by = 'debezium'\n", ""), PRODUCTS).said().contains("written_by is missing"));
}

#[test]
fn the_example_names_every_key() {
    let findings = folder(&MAIN.replace("schemas = true", "zzzzzzzzzzzz = 1"), PRODUCTS).load().unwrap_err();
    let list = findings.iter().find_map(|finding| Some(finding.hint.split_once("are: ")?.1.to_owned())).unwrap();
    let example = include_str!("../../../config/lockstep.toml");
    for key in list.split(", ") {
        assert!(example.contains(&format!("# {key} = ")), "the example lacks {key}");
    }
}
