use super::*;
use crate::relation::{Fingerprint, Format, Modes, TableName, TypeName};
use crate::value::Cell;

/// `name:type`, `!` behind it: of the key.
fn rows(columns: &str) -> Relation {
    let mut key = 0..;
    let column = |text: &str| {
        let (name, rest) = text.split_once(':').unwrap();
        let of = rest.trim_end_matches('!');
        let (type_oid, type_name, typmod) = match of {
            "int" => (23, "int4", -1),
            "text" => (25, "text", -1),
            "varchar3" => (1043, "varchar", 7),
            other => panic!("{other}"),
        };
        Column {
            name: name.into(),
            type_oid,
            type_name: type_name.into(),
            typmod,
            kind: TypeKind::Base,
            nullable: !rest.ends_with('!'),
            default: None,
            key: rest.ends_with('!').then(|| key.next().unwrap()),
            exact: true,
        }
    };
    let columns = columns.split(' ').map(column).collect();
    Relation {
        fingerprint: Fingerprint(0),
        oid: 1,
        name: TableName::new("public", "t"),
        topic: "p.public.t".into(),
        partitions: 1,
        format: Format::Json,
        modes: Modes::default(),
        columns,
        avro: None,
        transforms: vec![],
        hidden: vec![],
        composites: vec![],
    }
    .sealed()
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn column_names(list: &[&str]) -> Vec<ColumnName> {
    list.iter().map(|name| ColumnName::parse(name).unwrap()).collect()
}

fn shape(columns: Columns) -> Shape {
    Shape { columns, ..Shape::default() }
}

fn only(list: &[&str]) -> Shape {
    shape(Columns::Only(column_names(list)))
}

fn except(list: &[&str]) -> Shape {
    shape(Columns::Except(column_names(list)))
}

fn masked(column: &str, mask: Mask) -> Shape {
    Shape { masks: vec![(ColumnName::parse(column).unwrap(), mask)], ..Shape::default() }
}

fn keyed(key: &[&str]) -> Shape {
    Shape { key: names(key), ..Shape::default() }
}

/// Over a catalog that has just the rows' columns.
fn compiled(shape: &Shape, rows: &Relation, for_sinks: bool) -> Result<Shaped> {
    let catalog: Vec<&str> = rows.columns.iter().map(|column| column.name.as_str()).collect();
    shape.compile(rows.clone(), Some(&catalog), for_sinks)
}

fn columns(shaped: &Shaped) -> Vec<&str> {
    shaped.relation.columns.iter().map(|column| column.name.as_str()).collect()
}

/// Cells as text, `-` for NULL, `~` for absent.
fn through(shaped: &Shaped, cells: &[&str]) -> Vec<String> {
    let cell = |text: &&'static str| match *text {
        "-" => Cell::Null,
        "~" => Cell::Absent,
        text => Cell::Text(text.as_bytes()),
    };
    // Leaked: a handful of words in a test.
    let cells: Vec<&'static str> = cells.iter().map(|text| &*String::from(*text).leak()).collect();
    let row: RowBuf = cells.iter().map(cell).collect();
    let mut out = RowBuf::new();
    shaped.transformer.as_ref().expect("there is something to do").apply(row.row(), &mut out);
    let shown = |cell: Cell<'_>| match cell {
        Cell::Null => "-".to_owned(),
        Cell::Absent => "~".to_owned(),
        Cell::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
    };
    out.row().iter().map(shown).collect()
}

fn refusal(shape: &Shape, rows: &Relation, for_sinks: bool) -> String {
    let error = compiled(shape, rows, for_sinks).unwrap_err();
    assert_eq!(error.code(), Some(Code::ConnectorColumns));
    error.to_string()
}

#[test]
fn a_table_without_a_shape_is_as_it_was() {
    let rows = rows("id:int! name:text");
    let shaped = compiled(&Shape::default(), &rows, true).unwrap();
    assert_eq!(shaped.relation, rows);
    assert!(shaped.transformer.is_none());
    assert_eq!(Shape::default().digest(), None);
}

#[test]
fn columns_are_left_out_of_relation_and_rows_alike() {
    let rows = rows("id:int! name:text secret:text");
    for shape in [only(&["name", "id"]), except(&["secret"])] {
        let shaped = compiled(&shape, &rows, true).unwrap();
        assert_eq!(columns(&shaped), ["id", "name"]);
        assert_eq!(shaped.relation.key_columns(), [0]);
        assert!(shaped.relation.transforms.is_empty());
        assert_ne!(shaped.relation.fingerprint, rows.fingerprint);
        assert_eq!(through(&shaped, &["1", "~", "hidden"]), ["1", "~"]);
    }
}

#[test]
fn a_key_that_is_left_out_stays_in_the_key_alone_and_a_sink_needs_it() {
    let rows = rows("id:int! name:text");
    let shaped = compiled(&only(&["name"]), &rows, false).unwrap();
    assert_eq!(columns(&shaped), ["id", "name"]);
    assert!(shaped.relation.is_key_only(0) && !shaped.relation.is_key_only(1));
    assert_eq!(through(&shaped, &["1", "a"]), ["1", "a"]);
    assert!(refusal(&only(&["name"]), &rows, true).contains("\"id\""));
    assert!(refusal(&except(&["id"]), &rows, true).contains("\"id\""));
}

#[test]
fn what_is_named_and_not_there_is_refused() {
    let rows = rows("id:int! name:text");
    for (shape, word) in [
        (only(&["id", "nme"]), "columns"),
        (except(&["nme"]), "exclude_columns"),
        (masked("nme", Mask::Fixed { chars: 1 }), "masks"),
        (keyed(&["nme"]), "key"),
    ] {
        let refusal = refusal(&shape, &rows, false);
        assert!(refusal.contains(&format!("{word} names column \"nme\"")), "{refusal}");
        assert!(refusal.contains("id, name"), "{refusal}");
    }
}

#[test]
fn a_pattern_takes_columns_that_come_later() {
    let (now, later) =
        (rows("id:int! secret:text name:text"), rows("id:int! secret:text name:text secret_b:text my_secret:text"));
    let hiding = except(&["secret*"]);
    assert_eq!(columns(&compiled(&hiding, &now, true).unwrap()), ["id", "name"]);
    let shaped = compiled(&hiding, &later, true).unwrap();
    assert_eq!(columns(&shaped), ["id", "name", "my_secret"]);
    assert_eq!(shaped.relation.hidden, ["secret", "secret_b"]);
    assert_eq!(columns(&compiled(&only(&["id", "*secret"]), &later, true).unwrap()), ["id", "secret", "my_secret"]);
    let masks = compiled(&masked("*secret*", Mask::Fixed { chars: 1 }), &later, true).unwrap();
    assert_eq!(through(&masks, &["1", "a", "b", "c", "d"]), ["1", "*", "b", "*", "*"]);
    // What it takes is held to what is asked of one that is named.
    let number = rows("id:int! secret:text secret_n:int");
    assert!(refusal(&masked("secret*", Mask::Fixed { chars: 1 }), &number, false).contains("int4 and no text"));
    assert!(refusal(&except(&["*d"]), &now, true).contains("\"id\""));
    // One that hits nothing hides nothing.
    let refusal = refusal(&except(&["scret*"]), &later, false);
    assert!(refusal.contains("exclude_columns names columns scret*, and the table has none that match"), "{refusal}");
    // Another name of before is not in the catalog, and a column that was renamed into the pattern not in its rows.
    let catalog = ["id", "secret", "secret_name"];
    assert_eq!(columns(&hiding.compile(now, Some(&catalog), true).unwrap()), ["id"]);
}

#[test]
fn the_default_of_a_masked_column_is_hidden_too() {
    let mut rows = rows("id:int! pin:text open:text");
    for column in &mut rows.columns[1..] {
        column.default = Some(crate::relation::ColumnDefault::Literal("canary".into()));
    }
    let shaped = compiled(&masked("p*", Mask::Fixed { chars: 1 }), &rows, true).unwrap();
    let default = |column: usize| shaped.relation.columns[column].default.is_some();
    assert_eq!([default(1), default(2)], [false, true]);
}

#[test]
fn a_column_has_one_mask() {
    let rows = rows("id:int! a:text ab:text b:text");
    let name = |text: &str| ColumnName::parse(text).unwrap();
    let masks = |list: &[(&str, u32)]| Shape {
        masks: list.iter().map(|(text, chars)| (name(text), Mask::Fixed { chars: *chars })).collect(),
        ..Shape::default()
    };
    let said = refusal(&masks(&[("*b", 1), ("a*", 2)]), &rows, false);
    assert!(said.contains("masks *b and a* both match column \"ab\""), "{said}");
    let named = compiled(&masks(&[("*b", 1), ("a*", 2), ("ab", 3)]), &rows, false).unwrap();
    assert_eq!(through(&named, &["1", "-", "-", "-"]), ["1", "**", "***", "*"]);
}

#[test]
fn digests_of_names_are_those_of_older_builds() {
    // Made by a build without patterns: another digest would have every such table read again.
    let masks = vec![(ColumnName::Exactly("m".into()), Mask::Fixed { chars: 1 })];
    let old = Shape { masks, ..except(&["b", "a"]) };
    let json = r#"{"columns":{"except":["a","b"]},"key":[],"masks":[["m",{"fixed":{"chars":1}}]],"where":null}"#;
    assert_eq!(old.digest(), Some(hex::encode(&Sha256::digest(json)[..8])));
    assert_ne!(except(&["a*"]).digest(), except(&["\"a*\""]).digest(), "a pattern is no name");
}

#[test]
fn rows_from_before_a_hidden_column_was_added_have_it_not() {
    let old = rows("id:int! name:text");
    let catalog = ["id", "name", "secret"];
    let shaped = except(&["secret"]).compile(old.clone(), Some(&catalog), true).unwrap();
    assert_eq!(columns(&shaped), ["id", "name"]);
    let refusal = keyed(&["secret"]).compile(old, Some(&catalog), false).unwrap_err();
    assert_eq!(refusal.code(), Some(Code::ConnectorColumns));
}

#[test]
fn what_the_catalog_forgot_is_left_out_where_names_hide() {
    // `secret` was called `email` when these rows were written.
    let old = rows("id:int! email:text note:text");
    let catalog = ["id", "secret", "note"];
    for shape in [except(&["secret"]), masked("secret", Mask::Fixed { chars: 3 })] {
        let shaped = shape.compile(old.clone(), Some(&catalog), true).unwrap();
        assert_eq!(columns(&shaped), ["id", "note"]);
    }
    let listed = only(&["id", "note"]).compile(old.clone(), Some(&catalog), true).unwrap();
    assert_eq!(columns(&listed), ["id", "note"]);
    // Of a table that is gone nobody knows what a column was called.
    for shape in [except(&["secret"]), masked("secret", Mask::Fixed { chars: 3 })] {
        let refusal = shape.compile(old.clone(), None, true).unwrap_err();
        assert_eq!(refusal.code(), Some(Code::ConnectorColumns));
    }
    let dropped = except(&["email"]).compile(old, None, true).unwrap();
    assert_eq!(columns(&dropped), ["id", "note"]);
}

#[test]
fn masks_are_applied_and_told_of_without_their_salt() {
    let rows = rows("id:int! name:text ssn:varchar3");
    let fixed = compiled(&masked("name", Mask::Fixed { chars: 2 }), &rows, true).unwrap();
    assert_eq!(through(&fixed, &["1", "-", "abc"]), ["1", "**", "abc"]);
    let salt = "canary".into();
    let hash = Mask::Hash { algorithm: Algorithm::Sha256, version: HashVersion::V2, salt };
    let hashed = compiled(&masked("ssn", hash), &rows, true).unwrap();
    let row = through(&hashed, &["1", "~", "abc"]);
    assert!(row[2].len() == 3 && row[2] != "abc", "{row:?}");
    assert_eq!(row[1], "~");
    let json = serde_json::to_string(&hashed.relation).unwrap();
    assert!(json.contains(r#""kind":"mask","column":"ssn","mask":{"hash":{"algorithm":"SHA-256""#), "{json}");
    assert!(!json.contains("canary"));
    assert_eq!(serde_json::from_str::<Relation>(&json).unwrap(), hashed.relation);
}

#[test]
fn a_mask_that_would_hide_nothing_or_too_much_is_refused() {
    let rows = rows("id:int! n:int name:text! code:varchar3");
    assert!(refusal(&masked("n", Mask::Fixed { chars: 2 }), &rows, false).contains("int4 and no text"));
    assert!(refusal(&masked("name", Mask::Truncate { chars: 2 }), &rows, false).contains("of the key"));
    assert!(refusal(&masked("code", Mask::Fixed { chars: 4 }), &rows, true).contains("room for 3"));
    assert!(compiled(&masked("code", Mask::Fixed { chars: 4 }), &rows, false).is_ok());
}

#[test]
fn what_the_ledger_would_show_is_not_hidden() {
    let rows = rows("ssn:text! name:text");
    let hidden = Shape { key: names(&["name"]), ..except(&["ssn"]) };
    assert!(refusal(&hidden, &rows, false).contains("\"ssn\" tells rows apart"));
    let masked = Shape { key: names(&["name"]), ..masked("ssn", Mask::Fixed { chars: 3 }) };
    assert!(refusal(&masked, &rows, false).contains("\"ssn\" tells rows apart"));
    let shown = Shape { key: names(&["name", "ssn"]), ..except(&["ssn"]) };
    assert!(compiled(&shown, &rows, false).is_ok(), "it stands in the key");
}

#[test]
fn domains_over_text_have_its_length() {
    let base = TypeName { oid: 1043, name: "varchar".into(), typmod: 7, kind: TypeKind::Base };
    let domain = TypeKind::Domain { base: Box::new(base) };
    assert_eq!(text_length(99, "public.code", -1, &domain), Some(Some(3)));
    assert_eq!(text_length(98, "public.citext", -1, &TypeKind::Base), Some(None));
    assert_eq!(text_length(3802, "jsonb", -1, &TypeKind::Base), None);
}

#[test]
fn a_record_s_key_may_be_another_than_the_row_s() {
    let rows = rows("id:int! name:text owner:int");
    let shaped = compiled(&keyed(&["owner", "id"]), &rows, false).unwrap();
    assert_eq!(shaped.relation.key_columns(), [2, 0]);
    assert_eq!(shaped.relation.row_key(), [("id".to_owned(), 23)]);
    let same = compiled(&keyed(&["id"]), &rows, false).unwrap();
    assert_eq!(same.relation, rows);
}

#[test]
fn a_filter_is_of_the_version_and_leaves_rows_alone() {
    let rows = rows("id:int! name:text");
    let filter = Shape { filter: Some("id > 1".into()), ..Shape::default() };
    let shaped = compiled(&filter, &rows, true).unwrap();
    assert!(shaped.transformer.is_none() && shaped.relation.fingerprint != rows.fingerprint);
    assert_eq!(shaped.relation.columns, rows.columns);
    assert!(filter.digest().is_some());
}

fn with_constants(list: &[(&str, &str)]) -> Shape {
    let constant = |(column, value): &(&str, &str)| Constant { column: (*column).into(), value: (*value).into() };
    Shape { constants: list.iter().map(constant).collect(), ..Shape::default() }
}

#[test]
fn constants_stand_in_front_of_rows_and_keys() {
    let shape = with_constants(&[("tenant", "a"), ("where", "x")]);
    let plain = rows("name:text id:int!");
    let shaped = compiled(&shape, &plain, true).unwrap();
    assert_eq!(columns(&shaped), ["tenant", "where", "name", "id"]);
    assert_eq!(shaped.relation.key_columns(), [0, 1, 3]);
    assert_eq!(shaped.relation.constants(), [(0, "a"), (1, "x")]);
    assert_eq!((shaped.relation.own_key(), shaped.relation.row_key()), (vec![3], plain.row_key()));
    assert_eq!(through(&shaped, &["~", "7"]), ["a", "x", "~", "7"], "in an old row too");
    let other = compiled(&with_constants(&[("tenant", "a"), ("where", "y")]), &plain, true).unwrap();
    assert_ne!(other.relation.fingerprint, shaped.relation.fingerprint);
    let json = serde_json::to_string(&shaped.relation.transforms).unwrap();
    assert!(json.starts_with(r#"[{"kind":"constant","column":"tenant","value":"a"}"#), "{json}");

    let keyless = compiled(&shape, &rows("name:text"), true).unwrap();
    assert!(keyless.relation.key_columns().is_empty(), "rows without a key get none");
    let rekeyed = Shape { key: names(&["name"]), ..shape.clone() };
    let rekeyed = compiled(&rekeyed, &plain, false).unwrap().relation;
    assert_eq!((rekeyed.key_columns(), rekeyed.row_key()), (vec![0, 1, 2], plain.row_key()));
    assert!(refusal(&shape, &rows("id:int! where:text"), true).contains("which the table has"));
    let ahead = shape.compile(plain, Some(&["name", "id", "tenant"]), true).unwrap_err();
    assert!(ahead.to_string().contains("which the table has"), "a column that was added since");
}

#[test]
fn digests_tell_shapes_apart_by_what_they_leave() {
    let digests = [
        only(&["a", "b"]).digest(),
        only(&["a"]).digest(),
        except(&["a"]).digest(),
        masked("a", Mask::Fixed { chars: 1 }).digest(),
        masked("a", Mask::Fixed { chars: 2 }).digest(),
        keyed(&["a", "b"]).digest(),
        keyed(&["b", "a"]).digest(),
        with_constants(&[("a", "b")]).digest(),
        with_constants(&[("a", "c")]).digest(),
    ];
    let distinct: BTreeSet<_> = digests.iter().flatten().collect();
    assert_eq!(distinct.len(), digests.len());
    assert_eq!(only(&["b", "a"]).digest(), digests[0]);
}

#[test]
fn a_column_has_another_name_in_records_and_ranges_keep_the_tables() {
    let renames = |list: &[(&str, &str)]| -> Vec<(String, String)> {
        list.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect()
    };
    let shape = Shape { renames: renames(&[("id", "number"), ("name", "title")]), ..Shape::default() };
    let shaped = shape.compile(rows("id:int! name:text v:int"), Some(&["id", "name", "v"]), true).unwrap();
    let found: Vec<&str> = shaped.relation.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(found, ["number", "title", "v"]);
    assert_eq!(shaped.relation.row_key(), [("id".to_owned(), 23)]);
    assert!(shaped.transformer.is_none(), "rows stay as they come");
    assert!(shape.has_record_column("number") && !shape.has_record_column("id") && shape.has_record_column("v"));
    // Names that change places are no collision; one that the table has is.
    let swapped = Shape { renames: renames(&[("name", "v"), ("v", "name")]), ..Shape::default() };
    assert!(swapped.compile(rows("id:int! name:text v:int"), None, true).is_ok());
    let twin = Shape { renames: renames(&[("name", "v")]), ..Shape::default() };
    let error = twin.compile(rows("id:int! name:text v:int"), None, true).unwrap_err().to_string();
    assert!(error.contains("two columns the name \"v\""), "{error}");
    let gone = shape.compile(rows("id:int! v:int"), Some(&["id", "v"]), true).unwrap_err().to_string();
    assert!(gone.contains("rename_columns names column \"name\""), "{gone}");
    assert_ne!(shape.digest(), swapped.digest());
}
