//! Whole configurations: what a folder of files becomes, or what is said about it.

mod constants;
mod delete;
mod records;
mod topics;
mod values;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::*;
use crate::relation::DecimalMode;

/// The least that is a configuration.
const MAIN: &str = "name = \"shop\"\n[source]\nurl = \"postgres://u@127.0.0.1/catalog\"\n[kafka]\nbrokers = \"k:9092\"\n\
    [sinks.orders]\nurl = \"postgres://u@127.0.0.1/orders\"\n";
const PRODUCTS: &str = "table = \"products\"\n[sinks.orders]\n";
const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

/// A folder with files in it, by path; passwords (`*.pw`) only for their owner.
struct Folder(tempfile::TempDir);

impl Folder {
    fn with(files: &[(&str, &str)]) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = folder.0.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            let mode = if name.ends_with(".pw") { 0o600 } else { 0o644 };
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        folder
    }

    fn load(&self) -> Result<Config, Findings> {
        load(self.0.path(), &variables)
    }

    fn config(&self) -> Config {
        self.load().unwrap_or_else(|findings| panic!("{findings}"))
    }

    /// What is said, with the folder as DIR; `Debug` of it must not say more.
    fn said(&self) -> String {
        let findings = self.load().map(|config| describe(&config)).expect_err("there is something to find");
        let debug = format!("{findings:?}");
        let said = findings.to_string();
        for secret in ["hunter2", "s3cret"] {
            assert!(!said.contains(secret) && !debug.contains(secret), "{secret} in {said}\n{debug}");
        }
        said.replace(&self.0.path().display().to_string(), "DIR")
    }
}

/// A configuration with these connectors, file names and texts, and the sink that they name.
pub(crate) fn example(connectors: &[(&str, &str)]) -> Config {
    let unused = "[sinks.orders]\nurl = \"postgres://u@127.0.0.1/orders\"\n";
    let named = connectors.iter().any(|(_, text)| text.contains("[sinks.orders]"));
    let main = if named { MAIN.to_owned() } else { MAIN.replace(unused, "") };
    let files: Vec<(String, &str)> =
        connectors.iter().map(|(name, text)| (format!("connectors/{name}"), *text)).collect();
    let files = files.iter().map(|(name, text)| (name.as_str(), *text));
    Folder::with(&[("lockstep.toml", main.as_str())].into_iter().chain(files).collect::<Vec<_>>()).config()
}

fn variables(name: &str) -> Option<String> {
    match name {
        "HOST" => Some("db.internal".into()),
        "PW" => Some("hunter2".into()),
        "RAW_PW" => Some("hunter2@/s3cret".into()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

fn one(main: &str) -> Folder {
    Folder::with(&[("lockstep.toml", main), ("connectors/products.toml", PRODUCTS)])
}

#[test]
fn defaults_are_filled_in() {
    let config = one(MAIN).config();
    insta::assert_snapshot!(describe(&config));
    assert_eq!(config.source.receive_nap, Duration::from_millis(2));
    assert_eq!(config.tables[0].name, TableName::new("public", "products"));
    assert_eq!(config.tables[0].sinks[0].columns, None);
}

#[test]
fn everything_can_be_said_otherwise() {
    let main = r#"
        name = "shop"
        create = false
        reload = false
        connectors = "tables"
        [source]
        url = "postgres://u@${HOST}:6432/catalog?sslrootcert=system&connect_timeout=3"
        password_env = "PW"
        slot = "s"
        publication = "Pub"
        failover = false
        receive_bytes = "64KiB"
        receive_nap = "0ms"
        sender_timeout = "1m"
        signal_table = 'ops."Signals"'
        snapshot.chunk_rows = 5
        snapshot.connections = 4
        snapshot.rows_per_second = 1000
        snapshot.bytes_per_second = "1MiB"
        snapshot.chunk_bytes = "1MiB"
        [kafka]
        brokers = "a:1, b , [::1]:2"
        topic_prefix = "p"
        ledger = "l"
        compression = "zstd"
        retention = "36h"
        replication_factor = 2
        record_bytes_max = "64MiB"
        linger = "0ms"
        checkpoint_interval = "20ms"
        base_entries = 50
        base_interval = "5s"
        tls = true
        ca_file = "ca.pem"
        sasl_mechanism = "SCRAM-SHA-256"
        sasl_username = "k"
        sasl_password_file = "kafka.pw"
        [registry]
        url = "https://r1:443/api/, http://[::1]"
        ca_file = "ca.pem"
        username = "r"
        password_env = "PW"
        timeout = "900ms"
        [http]
        listen = "off"
        [sinks]
        b = { url = "postgres://u:%24@${HOST}/b", ca_file = "ca.pem" }
        a = { url = "postgres://u@/a?host=/run/pg", password_file = "a.pw", batch_rows_max = 1, span_wait = "2m" }
    "#;
    let odd = "table = '\"My Schema\".\"t/ö.x\"'\npartitions = 3\n[wire]\nformat = \"avro\"\n[sinks]\nb = { columns = [\"A b\"], evolve = \"full\" }\na.table = 'x.y'\n";
    let config = Folder::with(&[
        ("lockstep.toml", main),
        ("ca.pem", PEM),
        ("kafka.pw", "hunter2\n"),
        ("a.pw", "hunter2\r\n"),
        ("tables/odd.toml", odd),
        ("tables/.#odd.toml", "not TOML"),
        ("tables/notes.txt", "not TOML"),
        ("connectors/unused.toml", "not TOML"),
    ]);
    let dir = config.0.path().display().to_string();
    let config = config.config();
    insta::assert_snapshot!(describe(&config).replace(&dir, "DIR"));
    let password = |database: &Database| database.password.as_ref().map(|p| p.expose_secret().to_owned());
    let of_sink = |sink: &Sink| match &sink.engine {
        Engine::Postgres(database) | Engine::MariaDb(database) => password(database),
        Engine::Sqlite(_) => None,
    };
    assert_eq!(password(&config.source.database).as_deref(), Some("hunter2"));
    assert_eq!(of_sink(&config.sinks[0]).as_deref(), Some("hunter2"));
    assert_eq!(of_sink(&config.sinks[1]).as_deref(), Some("$"));
    assert_eq!(config.kafka.security.sasl.as_ref().unwrap().password.expose_secret(), "hunter2");
    assert_eq!(config.kafka.in_flight_bytes_max, 128 << 20, "follows the largest record");
    assert!(!format!("{config:?}{}", describe(&config)).contains("hunter2"));
}

#[test]
fn what_is_described_is_toml() {
    let text = describe(&one(MAIN).config());
    assert!(toml::from_str::<toml::Table>(&text).is_ok(), "{text}");
}

#[test]
fn everything_wrong_is_said_at_once() {
    let main = r#"
name = "My Shop"
creat = true
slot = "s"
[source]
url = "postgres://u:hunter2@db,db2:5432/catalog?sslmode=require"
publikation = "p"
failover = "yes"
receive_bytes = 32768
receive_nap = "2"
sender_timeout = "10 sec"
password = "hunter2"
snapshot = { chunk_rows = 0, chunk_bytes = "1KiB", chunks = 1 }
[kafka]
topic_prefix = "a b"
compression = "lz5"
retention = "${RETENTION}"
in_flight_bytes_max = "9MiB"
base_entries = "many"
sasl_username = "k"
ca_file = "nowhere.pem"
[http]
listen = "localhost:9464"
port = 1
[sinks.Orders]
batch_rows_max = 99999999999999999999
columns = ["id"]
[sinks.inventory]
url = 5
lock_timeout = 1979-05-27
[groups]
"#;
    let products =
        "table = \"public.Products\"\ngroup = \"g\"\ntopic = 1\npartitions = 0\n[sinks.order]\ncolumns = \"id\"\n";
    let prices = "tabel = \"prices\"\n[sinks.inventory]\nevolve = \"ful\"\ncolumns = [\"id\", \"id\", 3, \"\"]\nconsistency = \"row\"\n";
    let folder = Folder::with(&[
        ("lockstep.toml", main),
        ("connectors/products.toml", products),
        ("connectors/prices.toml", prices),
        ("connectors/broken.toml", "table = products\n[sinks.orders\nx\ntable = \"a\"\ntable = \"b\"\n"),
    ]);
    insta::assert_snapshot!(folder.said());
}

#[test]
fn what_files_do_to_each_other() {
    let main = format!(
        "{MAIN}[sinks.copy]\nurl = \"postgres://u@127.0.0.1/orders\"\n[sinks.back]\nurl = \"postgres://u@127.0.0.1/catalog\"\n\
         [sinks.idle]\nurl = \"postgres://u@127.0.0.1/idle\"\n"
    );
    let long = "x".repeat(63);
    let folder = Folder::with(&[
        ("lockstep.toml", &main),
        ("connectors/a.toml", "table = \"a\"\n[sinks.orders]\n[sinks.copy]\n[sinks.back]\n"),
        ("connectors/b.toml", "table = \"b\"\ntopic = \"shop.public.a\"\n[sinks.orders]\ntable = \"a\"\n"),
        ("connectors/c.toml", "table = \"a\"\n[sinks.orders]\n"),
        ("connectors/d.toml", "table = \"d\"\ntopic = \"shop.ledger\"\n"),
        ("connectors/e.toml", "table = 'x_y'\n"),
        ("connectors/f.toml", "table = '\"x.y\"'\n"),
        ("connectors/g.toml", &format!("table = '{long}'\ntopic = \"{}\"\n", "t".repeat(250))),
        ("connectors/h.toml", "table = \"lockstep.progress\"\n[sinks.other]\n"),
    ]);
    insta::assert_snapshot!(folder.said());
}

#[test]
fn what_a_connector_makes_of_its_rows() {
    let said = |connector: &str| {
        let text = format!("table = 't'\n{connector}");
        Folder::with(&[("lockstep.toml", MAIN), ("connectors/t.toml", &text)]).said()
    };
    let sink = "[sinks.orders]\n";
    let all = [
        said(&format!("where = ' '\ncolumns = []\nexclude_columns = ['b', 'b', '']\n{sink}")),
        said(&format!("columns = ['a']\nkey = ['b', 1]\n[masks.c]\nchars = 1\n{sink}columns = ['a', 'c']\n")),
        said(&format!(
            "key = ['c']\n[masks]\nc = {{ chars = 1 }}\nd = {{}}\ne = {{ chars = 1, truncate = 2 }}\n{sink}"
        )),
        said(&format!(
            "[masks.c]\nhash = 'MD5'\nsalt = 's3cret'\n[masks.d]\nhash = 'SHA-256'\nhash_version = 3\n{sink}"
        )),
        said(&format!(
            "[masks.c]\nchars = -1\nsalt = 's3cret'\n[masks.d]\nhash = 'SHA-512'\nsalt = '${{EMPTY}}'\n{sink}"
        )),
    ];
    insta::assert_snapshot!(all.join("\n\n"));
    let connector = "table = 't'\nexclude_columns = ['b']\nkey = ['d', 'a']\nskip_unchanged = true\n[masks]\n\
        c = { hash = 'SHA-384', salt = '${PW}', hash_version = 1 }\n'e f' = { chars = 0 }\ng.truncate = 9\n[sinks.orders]\n";
    let config = Folder::with(&[("lockstep.toml", MAIN), ("connectors/t.toml", connector)]).config();
    let described = describe(&config);
    assert!(!format!("{config:?}{described}").contains("hunter2"));
    assert!(toml::from_str::<toml::Table>(&described).is_ok(), "{described}");
    insta::assert_snapshot!(
        described.split_once("[[connectors]]").unwrap().1.split_once("[connectors.wire]").unwrap().0
    );
}

#[test]
fn columns_are_named_by_pattern_too() {
    let sink = "[sinks.orders]\n";
    let folder = |connector: &str| {
        Folder::with(&[("lockstep.toml", MAIN), ("connectors/t.toml", &format!("table = 't'\n{connector}{sink}"))])
    };
    let config = folder("exclude_columns = ['secret*', '\"a*b\"']\n[masks.'p*']\nchars = 1\n").config();
    let shape = &config.tables[0].shape;
    assert!(!shape.keeps("secret_9") && !shape.keeps("a*b") && shape.keeps("axb"));
    let described = describe(&config);
    assert!(described.contains(r#"exclude_columns = ["secret*", '"a*b"']"#), "{described}");
    assert!(described.contains(r#"[connectors.masks."p*"]"#), "{described}");
    for (connector, wanted) in [
        ("exclude_columns = ['\"a*']\n", "\"\\\"a*\" lacks a closing quote"),
        ("key = ['id']\n[masks.'i*']\nchars = 1\n", "column \"id\" has a mask and is of the key"),
        ("columns = ['id', 'a*']\n[masks.b]\nchars = 1\n", "column \"b\" has a mask, but is left out"),
    ] {
        let said = folder(connector).said();
        assert!(said.contains(wanted), "{connector}: {said}");
    }
    let long = format!("columns = ['id', '{}*']\n", "x".repeat(64));
    assert!(folder(&long).said().contains("matches nothing: names have at most 63 bytes"));
}

#[test]
fn secrets_have_one_way_in_and_no_way_out() {
    let main = r#"
name = "shop"
[source]
url = "postgres://u:hunter2@h/d"
password_env = "PW"
[kafka]
brokers = "k"
ca_file = "ca.pem"
sasl_mechanism = "scram-sha-512"
sasl_password_file = "empty.pw"
sasl_password = "hunter2"
[sinks.a]
url = "postgres://u:${RAW_PW}@h/d"
[sinks.b]
url = "postgres://u@h/d"
password_file = "open.txt"
ca_file = "open.txt"
[sinks.c]
url = "postgres://u@h/d?sslrootcert=ca.pem"
password_file = "gone.pw"
password_env = "PW"
ca_file = "ca.pem"
[sinks.d]
url = "postgres://u@h/d?sslrootcert=gone.pem"
password_env = "EMPTY"
[sinks.e]
url = "postgres://u@h/d?sslmode=disable"
password_env = "${PW}!"
ca_file = "ca.pem"
[sinks.f]
url = "postgres://u@127.0.0.1/d?password=hunter2"
password_file = "gone.pw"
"#;
    let sinks = "table = 'a'\n[sinks]\na = {}\nb = {}\nc = {}\nd = {}\ne = {}\nf = {}\n";
    let folder = Folder::with(&[
        ("lockstep.toml", main),
        ("connectors/a.toml", sinks),
        ("open.txt", "hunter2"),
        ("empty.pw", "\n"),
        ("ca.pem", PEM),
    ]);
    insta::assert_snapshot!(folder.said());
}

#[test]
fn a_registry_is_asked_for_and_its_address_holds_no_secret() {
    let avro = "table = 'a'\n[wire]\nformat = \"avro\"\n[sinks.orders]\n";
    let said = |registry: &str, connector: &str| {
        let main = MAIN.replace("[source]", &format!("{registry}\n[source]"));
        let files = [
            ("lockstep.toml", main.as_str()),
            ("connectors/a.toml", connector),
            ("ca.pem", PEM),
            ("r.pw", "s3cret\n"),
            ("bad.pw", "s3crét"),
        ];
        Folder::with(&files).said()
    };
    let plain = "table = 'a'\n[sinks.orders]\n";
    let all = [
        said("", avro),
        said("[wire]\nformat = \"avro\"", plain),
        said("[wire]\nformat = \"Avro\"", plain),
        said("[registry]\ntimeout = \"1s\"", plain),
        said("[registry]\nurl = \"registry:8081\"", avro),
        said("[registry]\nurl = \"http://u:hunter2@r\"", avro),
        said("[registry]\nurl = \"http://r\"\nca_file = \"ca.pem\"\nusername = \"u\"", avro),
        said("[registry]\nurl = \"http://r\"\npassword_file = \"r.pw\"", avro),
        said("[registry]\nurl = \"http://r\"\nusername = \"u:v\"\npassword_file = \"r.pw\"", avro),
        said("[registry]\nurl = \"http://r\"\ntoken_file = \"bad.pw\"", avro),
        said("[registry]\nurl = \"http://r\"\nusername = \"u\"\npassword_env = \"PW\"\ntoken_file = \"r.pw\"", avro),
    ];
    insta::assert_snapshot!(all.join("\n\n"));
}

#[test]
fn folders_that_hold_no_configuration() {
    let mut said = Folder::with(&[]).said();
    let alone = Folder::with(&[("config/lockstep.toml", MAIN)]);
    let config = alone.0.path().join("config");
    let dir = alone.0.path().display().to_string();
    for path in [&config, &config.join("lockstep.toml")] {
        said.push_str(&format!("\n\n{}", load(path, &variables).unwrap_err()).replace(&dir, "DIR"));
    }
    let named = MAIN.replace("[source]", "connectors = \"nowhere\"\n[source]");
    said.push_str(&format!("\n\n{}", one(&named).said()));
    let binary = one(MAIN);
    std::fs::write(binary.0.path().join("connectors/products.toml"), [0xff, 0xfe]).unwrap();
    said.push_str(&format!("\n\n{}", binary.said()));
    insta::assert_snapshot!(said);
}

#[test]
fn connectors_stand_inside_or_beside() {
    let beside = [("config/lockstep.toml", MAIN), ("connectors/products.toml", PRODUCTS)];
    let folder = Folder::with(&beside);
    assert_eq!(load(&folder.0.path().join("config"), &variables).unwrap().tables.len(), 1);
    let inside = ("config/connectors/prices.toml", "table = \"prices\"\n[sinks.orders]\n");
    let folder = Folder::with(&[beside[0], beside[1], inside]);
    assert_eq!(load(&folder.0.path().join("config"), &variables).unwrap().tables[0].name.table, "prices");
}

/// `#key = …` becomes `key = …`; prose and examples stay (`# …`).
fn uncommented(text: &str) -> String {
    let default =
        |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ') && !rest.is_empty()).map(String::from);
    text.lines().map(|line| default(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

#[test]
fn the_examples_load_and_their_comments_are_the_defaults() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let examples = load(&root.join("config"), &|_| None).unwrap_or_else(|findings| panic!("{findings}"));
    let tables: Vec<String> = examples.tables.iter().map(|table| table.name.to_string()).collect();
    assert_eq!(tables, ["public.categories", "public.prices", "public.products", "public.suppliers"]);

    let mut files = BTreeMap::new();
    for name in [
        "config/lockstep.toml",
        "connectors/products.toml",
        "connectors/categories.toml",
        "connectors/prices.toml",
        "connectors/suppliers.toml",
    ] {
        let text = std::fs::read_to_string(root.join(name)).unwrap();
        files.insert(name.strip_prefix("config/").unwrap_or(name), uncommented(&text));
    }
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    // But for where they are.
    let shown = |config: Config| format!("{:#?}", Config { connectors: PathBuf::new(), ..config });
    assert_eq!(shown(Folder::with(&files).config()), shown(examples));
}

#[test]
fn the_examples_name_every_key() {
    let odd = "\nzzzzzzzzzzzz = 1\n";
    let mut main = String::from(odd);
    for section in ["source", "source.snapshot", "kafka", "registry", "http", "wire", "sinks.orders"] {
        main.push_str(&format!("[{section}]{odd}"));
    }
    let connector =
        format!("{odd}[masks.x]{odd}[wire]{odd}[outbox]{odd}[sinks.orders]{odd}[sinks.orders.values.x]{odd}");
    let folder = Folder::with(&[("lockstep.toml", &main), ("connectors/a.toml", &connector)]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name| std::fs::read_to_string(root.join(name)).unwrap();
    let examples = read("config/lockstep.toml") + &read("connectors/products.toml");
    let findings = folder.load().unwrap_err();
    let lists: Vec<&str> = findings.iter().filter_map(|finding| Some(finding.hint.split_once("are: ")?.1)).collect();
    assert_eq!(lists.len(), 14);
    for key in lists.iter().flat_map(|list| list.split(", ")) {
        let written = [format!("{key} = "), format!("[{key}"), format!(".{key}]"), format!(".{key}.")];
        assert!(written.iter().any(|written| examples.contains(written)), "the examples lack {key}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

    #[test]
    fn any_file_is_answered(
        lines in proptest::collection::vec("\\PC{0,20}|\\[(source|kafka|sinks|sinks\\.a|http)\\]|(name|url|brokers|linger|create|table|sinks) = (1|true|\"\\PC{0,9}\"|\\[\\]|\\{\\}|'')", 0..8),
    ) {
        let text = lines.join("\n");
        let folder = Folder::with(&[("lockstep.toml", &text), ("connectors/a.toml", &text)]);
        if let Err(findings) = folder.load() {
            let _ = findings.to_string();
        }
    }

    /// Whatever a pasted password does to the line it stands on, what is said about the line does not hold it.
    #[test]
    fn no_finding_shows_a_password(
        pieces in proptest::collection::vec("XQZJ|[@:/?#%&= ,'\"\\\\\\[\\]]", 1..8),
        rest in "@h/d|@h:5432/d\\?sslmode=require|@",
        quotes in "\"|'|\"\"\"|",
    ) {
        let url = format!("url = {quotes}postgres://u:XQZJ{}XQZJ{rest}{quotes}\n", pieces.concat());
        let main = MAIN.replace("url = \"postgres://u@127.0.0.1/orders\"\n", &url);
        if let Err(findings) = one(&main).load() {
            let (said, debug) = (findings.to_string(), format!("{findings:?}"));
            proptest::prop_assert!(!said.contains("XQZJ") && !debug.contains("XQZJ"), "{}{}", url, said);
        }
    }
}

#[test]
fn a_table_says_for_itself_what_its_records_look_like() {
    let main = format!("{MAIN}\n[wire]\ndecimal_handling = \"precise\"\nschemas = true\ntransaction_metadata = true\n");
    let own =
        "table = 'public.own'\n[wire]\ndecimal_handling = \"double\"\ntombstones = false\nskipped_operations = ['t']\n";
    let folder =
        Folder::with(&[("lockstep.toml", &main), ("connectors/products.toml", PRODUCTS), ("connectors/own.toml", own)]);
    let config = folder.config();
    let [own, products] = &config.tables[..] else { panic!("two tables") };
    assert_eq!((own.wire.modes.decimal, own.wire.modes.schemas), (DecimalMode::Double, true));
    assert_eq!((own.wire.tombstones, own.wire.skipped.as_slice()), (false, ['t'].as_slice()));
    assert_eq!(products.wire.modes.decimal, DecimalMode::Precise);
    assert_eq!(config.wire.transaction_topic.as_deref(), Some("shop.transaction"));
}

#[test]
fn a_table_shares_no_topic_with_records_of_no_table() {
    for (wire, found) in [
        ("transaction_metadata = true", "transaction metadata"),
        ("logical_messages = true\nmessage_topic = 'shop.transaction'", "logical messages"),
        ("heartbeat_interval = '1s'\nheartbeat_topic = 'shop_transaction'", "heartbeats"),
    ] {
        let main = format!("{MAIN}\n[wire]\n{wire}\n");
        let products = PRODUCTS.replacen('\n', "\ntopic = 'shop.transaction'\n", 1);
        let said = Folder::with(&[("lockstep.toml", &main), ("connectors/products.toml", &products)]).said();
        assert!(said.contains(&format!("is that of {found}")), "{said}");
    }
}

#[test]
fn rows_are_parked_in_row_consistency_alone_and_in_a_topic_of_their_own() {
    let park = |more: &str| format!("{MAIN}on_refused = 'park'\n{more}");
    let said = one(&park("")).said();
    assert!(said.contains("write consistency = \"row\" beside it"), "{said}");
    let said = one(&park("consistency = 'row'\nparked_topic = 'shop.public_products'\n")).said();
    assert!(said.contains("is that of records that are parked"), "{said}");
    let parking = one(&park("consistency = 'row'\nparked_max = 7\n")).config().sinks.remove(0).parking;
    assert_eq!((parking.topic.as_str(), parking.records_max), ("lockstep.shop.orders.parked", 7));
    let (main, soft) = (park("consistency = 'row'\n"), format!("{PRODUCTS}delete = 'soft'\n"));
    let said = Folder::with(&[("lockstep.toml", &main), ("connectors/products.toml", &soft)]).said();
    assert!(said.contains("which parks rows"), "{said}");
}

#[test]
fn a_sink_takes_every_record_of_its_tables() {
    for (key, found) in [("tombstones = false", "tombstones"), ("skipped_operations = ['u']", "skipped_operations")] {
        let products = PRODUCTS.replacen('\n', &format!("\n[wire]\n{key}\n"), 1);
        let said = Folder::with(&[("lockstep.toml", MAIN), ("connectors/products.toml", &products)]).said();
        assert!(said.contains(found) && said.contains("leaves records out"), "{said}");
    }
}

// ---- Tables by list and by pattern ----

/// The text of one connector, resolved for tables with these names: names, topics and sinks' tables, and what is left out.
fn resolved(connectors: &[(&str, &str)], names: &[&str]) -> (Vec<String>, Vec<String>) {
    let files: Vec<(&str, &str)> = [("lockstep.toml", MAIN)].into_iter().chain(connectors.iter().copied()).collect();
    let config = Folder::with(&files).config();
    let names: Vec<TableName> = names.iter().map(|name| connector::parse_table(name).unwrap()).collect();
    let (config, left_out) = config.resolve(&names);
    let again = config.resolve(&names).0;
    assert_eq!(format!("{:?}", again.tables), format!("{:?}", config.tables), "what is resolved stays so");
    let shown = |table: &Table| {
        let sinks: Vec<String> =
            table.sinks.iter().map(|sink| format!("{} of {}", sink.table.quoted(), sink.sink)).collect();
        format!("{} -> {} -> {}", table.name, table.topic, sinks.join(", "))
    };
    (config.tables.iter().map(shown).collect(), left_out.iter().map(ToString::to_string).collect())
}

#[test]
fn a_list_is_as_many_tables() {
    let list = "table = [\"products\", 'shop.\"Odd name\"']\ntopic = \"x.{schema}-{table}\"\n[sinks.orders]\ntable = 'copy.{schema}_{table}'\n";
    let (tables, left_out) = resolved(&[("connectors/a.toml", list)], &[]);
    insta::assert_debug_snapshot!((tables, left_out), @r#"
    (
        [
            "public.products -> x.public-products -> \"copy\".\"public_products\" of orders",
            "shop.Odd name -> x.shop-Odd_name -> \"copy\".\"shop_Odd name\" of orders",
        ],
        [],
    )
    "#);
}

#[test]
fn patterns_become_tables_once_names_are_known() {
    let pattern = "table = [\"tenant_*.orders\", \"tenant_*.\\\"Cafés\\\"\"]\nexclude = [\"tenant_0.*\"]\n[sinks.orders]\n\
                   table = '\"All tenants\".{schema}_{table}'\n";
    let own = "table = \"tenant_9.orders\"\n[sinks.orders]\n";
    let names = ["tenant_1.orders", "tenant_2.\"Cafés\"", "tenant_0.orders", "tenant_9.orders", "public.orders"];
    let (tables, left_out) = resolved(&[("connectors/a.toml", pattern), ("connectors/b.toml", own)], &names);
    insta::assert_debug_snapshot!((tables, left_out), @r#"
    (
        [
            "tenant_1.orders -> shop.tenant_1.orders -> \"All tenants\".\"tenant_1_orders\" of orders",
            "tenant_2.Cafés -> shop.tenant_2.Caf_s -> \"All tenants\".\"tenant_2_Cafés\" of orders",
            "tenant_9.orders -> shop.tenant_9.orders -> \"tenant_9\".\"orders\" of orders",
        ],
        [],
    )
    "#);
}

#[test]
fn what_can_t_stand_beside_the_others_is_left_out_by_name() {
    let a = "table = \"a*\"\n[sinks.orders]\ntable = 'copy.xx{table}'\n";
    let b = "table = \"*b\"\n[sinks.orders]\ntable = 'copy.{table}'\n";
    let other = "table = \"other.*\"\n[sinks.orders]\ntable = 'copy.xx{table}'\n";
    let long = format!("\"a {}\"", "ü".repeat(30));
    let names = ["ab", "a_x", "\"a x\"", "other.a_x", "pg_x.a", "other.y", &long];
    let (tables, left_out) =
        resolved(&[("connectors/a.toml", a), ("connectors/b.toml", b), ("connectors/c.toml", other)], &names);
    assert_eq!(tables.len(), 2, "{tables:?}");
    let said = left_out.join("\n");
    for (table, why) in [
        ("public.ab", "b.toml both match it (help: write exclude = ['\"public\".\"ab\"'] into one of them)"),
        ("public.a x", "its topic \"shop.public.a_x\" is that of table public.a_x"),
        ("other.a_x", "table public.a_x goes into copy.xxa_x of sink \"orders\" too"),
        (&format!("public.{}", &long[1..long.len() - 1]), "has 64 bytes, Postgres keeps 63"),
    ] {
        let line = said.lines().find(|line| line.contains(&format!("table {table} matches"))).unwrap_or(&said);
        assert!(line.contains(why), "{why}: {line}");
    }
    assert_eq!(left_out.len(), 4, "{said}");
}

#[test]
fn findings_of_lists_and_patterns() {
    let main = MAIN.replace("postgres://u@127.0.0.1/orders", "postgres://u@127.0.0.1/elsewhere");
    let folder = Folder::with(&[
        ("lockstep.toml", &main),
        ("connectors/a.toml", "table = [\"t_*\", \"x\"]\ntopic = \"one\"\n[sinks.orders]\ntable = \"one\"\n"),
        ("connectors/b.toml", "table = []\nexclude = [\"y\"]\n[sinks.orders]\n"),
        ("connectors/c.toml", "table = \"T_*\"\ntopic = \"{tabel}\"\n[sinks.orders]\ntable = \"a.{x}\"\n"),
        ("connectors/e.toml", "table = \"e*\"\nwhere = \"a > 1\"\n[outbox]\n"),
        ("connectors/d.toml", "table = [\"d*\", \"pg_catalog.*\", 5]\n[wire]\ntombstones = false\n[sinks.orders]\n"),
    ]);
    insta::assert_snapshot!(folder.said(), @r#"
    error[CONFIG]: topic lacks {table}: tables that differ in it would share one topic
      --> DIR/connectors/a.toml:2:9
      |
    2 | topic = "one"
      |         ^^^^^
      help: write topic = "….{table}", or delete the line; or tell their rows apart by a column of [add_columns] with {table}

    error[CONFIG]: table lacks {table}: tables that differ in it would share one table of sink "orders"
      --> DIR/connectors/a.toml:4:9
      |
    4 | table = "one"
      |         ^^^^^
      help: write table = 'shared.{table}', or delete the line for the same name; or tell their rows apart by a column of [add_columns] with {table}

    error[CONFIG]: table is empty
      --> DIR/connectors/b.toml:1:9
      |
    1 | table = []
      |         ^^
      help: write table = ["public.products"]

    error[CONFIG]: exclude has no effect: table is no pattern
      --> DIR/connectors/b.toml:2:11
      |
    2 | exclude = ["y"]
      |           ^^^^^
      help: delete the line, or write table = "public.*"

    error[CONFIG]: table: "T_*" has capitals without quotes, which Postgres reads as small letters
      --> DIR/connectors/c.toml:1:9
      |
    1 | table = "T_*"
      |         ^^^^^
      help: write table = 't_*' or '"T_"*'

    error[CONFIG]: topic has no placeholder {tabel}
      --> DIR/connectors/c.toml:2:9
      |
    2 | topic = "{tabel}"
      |         ^^^^^^^^^
      help: write one of {prefix}, {schema}, {table}

    error[CONFIG]: table: "{x}" is no placeholder; there are {schema} and {table}, and {{x}} for the text
      --> DIR/connectors/c.toml:4:9
      |
    4 | table = "a.{x}"
      |         ^^^^^^^
      help: write table = 'shared.{schema}_{table}'

    error[CONFIG]: schema pg_catalog is not for tables of a service
      --> DIR/connectors/d.toml:1:16
      |
    1 | table = ["d*", "pg_catalog.*", 5]
      |                ^^^^^^^^^^^^^^
      help: write table = 'public.…'

    error[CONFIG]: each of table must be a string, found an integer
      --> DIR/connectors/d.toml:1:32
      |
    1 | table = ["d*", "pg_catalog.*", 5]
      |                                ^
      help: write table = ["public.products"]

    error[CONFIG]: tombstones = false leaves records out, but sink "orders" takes this table
      --> DIR/connectors/d.toml:3:14
      |
    3 | tombstones = false
      |              ^^^^^
      help: write records = "envelope", tombstones = true and skipped_operations = [] into [wire] of this connector, or give consumers a pipeline of their own without sinks

    error[CONFIG]: where is published with its table, and tables that a pattern matches are published as they come
      --> DIR/connectors/e.toml:1:9
      |
    1 | table = "e*"
      |         ^^^^
      help: name the table in a connector of its own

    error[CONFIG]: an outbox is one table, and table is a pattern
      --> DIR/connectors/e.toml:3:2
      |
    3 | [outbox]
      |  ^^^^^^
      help: name the table in a connector of its own

    12 findings in 5 files; nothing was started
    "#);
}

#[test]
fn a_sink_may_be_a_sqlite_file() {
    let of = |url: &str| MAIN.replace("postgres://u@127.0.0.1/orders", url);
    for (url, path) in [
        ("sqlite:edge.db", "edge.db"),
        ("sqlite:///srv/${HOST}.db", "/srv/db.internal.db"),
        ("sqlite:a b/é.db", "a b/é.db"),
    ] {
        let folder = one(&of(url));
        let config = folder.config();
        let Engine::Sqlite(file) = &config.sinks[0].engine else { panic!("{url}") };
        assert_eq!(*file, folder.0.path().join(path));
        assert!(describe(&config).contains(&format!("url = \"sqlite:{}\"", file.display())));
    }
    let said = ["sqlite:", "sqlite::memory:", "sqlite:a.db?mode=ro", "sqlite:a/"].map(|url| {
        let said = one(&of(url)).said();
        said.lines().next().unwrap_or_default().to_owned()
    });
    insta::assert_snapshot!(said.join("\n"), @r"
    error[CONFIG]: the URL names no file
    error[CONFIG]: a database in memory is gone with the process, and its progress with it
    error[CONFIG]: the path of a SQLite file has no ? and no #: a sink takes no parameters
    error[CONFIG]: the URL names a folder, not a file
    ");
    // One file under two names, and what only servers have.
    let two = format!("{}[sinks.copy]\nurl = \"sqlite:edge.db\"\npassword_env = \"PW\"\n", of("sqlite:edge.db"));
    let folder = Folder::with(&[
        ("lockstep.toml", &two),
        ("connectors/products.toml", "table = \"products\"\n[sinks.orders]\n[sinks.copy]\n"),
    ]);
    let said = folder.said();
    assert!(said.contains("are one database") && said.contains("password_env"), "{said}");
}
