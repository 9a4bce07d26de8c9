//! The program as a user meets it: exit codes, what is printed where, signals, endpoints, and documents that keep their word.
//!
//! No service is needed: where a source or broker has to be away, the configuration names a port on which nobody listens.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than the product's own deadline for a stop, so that a miss of it is seen as one.
const PATIENCE: Duration = Duration::from_secs(20);

fn lockstep(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
    command.args(args);
    for name in ["LOCKSTEP_CONFIG", "LOCKSTEP_LOG", "LOCKSTEP_LOG_FORMAT"] {
        command.env_remove(name);
    }
    command
}

fn output(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = lockstep(args).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A port of this machine that nobody listens on.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A sound configuration whose services are all away.
fn folder(http_port: u16) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let away = free_port();
    let main = format!(
        "name = \"shop\"\n[source]\nurl = \"postgres://u@127.0.0.1:{away}/catalog\"\n[kafka]\nbrokers = \"127.0.0.1:{away}\"\n\
         [http]\nlisten = \"127.0.0.1:{http_port}\"\n[sinks.orders]\nurl = \"postgres://u@127.0.0.1:{away}/orders\"\n"
    );
    std::fs::write(folder.path().join("lockstep.toml"), main).unwrap();
    std::fs::create_dir(folder.path().join("connectors")).unwrap();
    let connector = "table = \"public.products\"\n[sinks.orders]\n";
    std::fs::write(folder.path().join("connectors/products.toml"), connector).unwrap();
    folder
}

/// `lockstep run`, killed when the test ends.
struct Running {
    child: Child,
    http_port: u16,
    _folder: tempfile::TempDir,
}

impl Running {
    /// Starts it and waits until HTTP answers.
    fn start(more: &[&str]) -> Running {
        let http_port = free_port();
        let folder = folder(http_port);
        let config = folder.path().to_str().unwrap().to_owned();
        let mut args = vec!["run", "--config", &config];
        args.extend(more);
        let child = lockstep(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let running = Running { child, http_port, _folder: folder };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", http_port)).is_err() {
            assert!(begun.elapsed() < PATIENCE, "HTTP does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http_port)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end: exit code and standard error.
    fn end(mut self) -> (i32, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status.code().expect("it was not killed"), log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_bad_configuration_is_two_with_every_finding() {
    let folder = folder(free_port());
    let main = folder.path().join("lockstep.toml");
    let text = std::fs::read_to_string(&main).unwrap();
    std::fs::write(&main, text.replace("name = \"shop\"", "name = \"Shop!\"\nbrokerz = 1")).unwrap();
    for verb in ["run", "check", "ledger", "status"] {
        let (code, out, err) = output(&[verb, "--config", folder.path().to_str().unwrap()]);
        assert_eq!(code, 2, "{verb}: {err}");
        assert_eq!(out, "", "{verb}");
        assert_eq!(err.matches("error[CONFIG]").count(), 2, "{verb}: {err}");
        assert!(err.contains("lockstep.toml:1:") && err.contains("lockstep.toml:2:"), "{verb}: {err}");
        assert!(err.contains("help: "), "{verb}: {err}");
    }
}

#[test]
fn usage_errors_are_two() {
    for args in
        [&["frobnicate"][..], &["run", "--role", "sinks"], &["run", "--log-format", "xml"], &["explain", "NO_CODE"]]
    {
        let (code, out, err) = output(args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}");
        assert!(err.starts_with("error: "), "{args:?}: {err}");
    }
    let folder = folder(free_port());
    let (code, _, err) = output(&["run", "--config", folder.path().to_str().unwrap(), "--role", "sink:nobody"]);
    assert_eq!(code, 2);
    assert!(err.contains("there is no role sink:nobody in this configuration; it has source, sink:orders"), "{err}");
    let filtered =
        lockstep(&["run", "--config", folder.path().to_str().unwrap()]).env("LOCKSTEP_LOG", "=[").output().unwrap();
    assert_eq!(filtered.status.code(), Some(2));
}

#[test]
fn sigterm_and_sigint_end_with_zero_also_while_everything_is_away() {
    for (signal, role) in [("TERM", "source"), ("INT", "sink:orders")] {
        let running = Running::start(&["--role", role]);
        running.signal(signal);
        let (code, log) = running.end();
        assert_eq!(code, 0, "{log}");
        assert!(log.contains(&format!("SIG{signal}")), "{log}");
    }
}

#[test]
fn the_process_says_how_it_is() {
    let running = Running::start(&[]);
    let (code, status) = running.get("/status");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!((code, &status["pipeline"]), (200, &serde_json::json!("shop")));
    assert!(status["source"].is_object() && status["sinks"]["orders"].is_object(), "{status}");
    assert_eq!(running.get("/healthz").0, 200);
    assert_eq!(running.get("/readyz").0, 503, "nothing is reachable");
    assert!(running.get("/metrics").1.contains("lockstep_build_info"));
    assert!(running.get("/").1.contains("lockstep"));

    let url = format!("http://127.0.0.1:{}", running.http_port);
    let (code, table, err) = output(&["status", "--url", &url]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(table.starts_with("pipeline shop\n") && table.contains("sink:orders"), "{table}");
    let config = running._folder.path().to_str().unwrap();
    let (code, json, _) = output(&["status", "--config", config, "--json"]);
    assert_eq!(code, 0);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["pipeline"], "shop");
}

#[test]
fn a_role_of_another_process_is_not_in_this_ones_status() {
    let running = Running::start(&["--role", "sink:orders"]);
    let status: serde_json::Value = serde_json::from_str(&running.get("/status").1).unwrap();
    assert!(status["source"].is_null() && status["sinks"]["orders"].is_object(), "{status}");
}

#[test]
fn a_port_in_use_is_two_and_names_the_port() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let folder = folder(port);
    let (code, _, err) = output(&["run", "--config", folder.path().to_str().unwrap()]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("error[CONFIG]") && err.contains(&format!("127.0.0.1:{port}")), "{err}");
}

#[test]
fn logs_off_a_terminal_are_json_and_text_on_request() {
    let running = Running::start(&[]);
    running.signal("TERM");
    let (_, log) = running.end();
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
    let running = Running::start(&["--log-format", "text"]);
    running.signal("TERM");
    let (_, log) = running.end();
    assert!(log.lines().next().unwrap().contains("started") && !log.starts_with('{'), "{log}");
}

#[test]
fn nobody_to_ask_is_one() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let (code, out, err) = output(&["status", "--url", &url]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains(&url) && err.contains("help: "), "{err}");
}

#[test]
fn explain_knows_the_codes() {
    let (code, list, _) = output(&["explain"]);
    assert_eq!(code, 0);
    assert!(list.lines().any(|line| line.starts_with("TOPIC_GAP  ")), "{list}");
    let (code, text, _) = output(&["explain", "error[topic_gap]"]);
    assert_eq!(code, 0);
    assert!(text.starts_with("## TOPIC_GAP\n") && text.contains("What to do: "), "{text}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = lockstep(&["explain"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(0));
}

/// Keys of a TOML file that shows all of them, commented or not, as `section.key`.
fn keys(file: &str) -> BTreeSet<String> {
    let (mut section, mut keys) = (String::new(), BTreeSet::new());
    for line in file.lines().map(|line| line.trim_start_matches('#').trim_start_matches(' ')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = match name.split_once('.') {
                Some(("sinks", name)) if name.contains(".values.") => "sinks.NAME.values.COLUMN".to_owned(),
                Some(("sinks", _)) => "sinks.NAME".to_owned(),
                Some(("masks", _)) => "masks.COLUMN".to_owned(),
                _ => name.to_owned(),
            };
        } else if let Some((key, _)) = line.split_once(" = ")
            && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        {
            keys.insert(match section.as_str() {
                "" => key.to_owned(),
                "add_columns" => "add_columns.COLUMN".to_owned(),
                "rename_columns" => "rename_columns.COLUMN".to_owned(),
                section => format!("{section}.{key}"),
            });
        }
    }
    keys
}

#[test]
fn the_configuration_reference_lists_every_key() {
    let docs = include_str!("../docs/configuration.md");
    let (process, connector) = docs.split_once("\n## Connectors").expect("a part about connectors");
    let listed = |part: &str| -> BTreeSet<String> {
        part.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect()
    };
    assert_eq!(listed(process), keys(include_str!("../config/lockstep.toml")));
    // A connector's `[wire]` takes keys of the process' own besides.
    let shown = keys(include_str!("../connectors/products.toml"));
    let wire: BTreeSet<String> = shown.iter().filter(|key| key.starts_with("wire.")).cloned().collect();
    let own: BTreeSet<String> = shown.difference(&listed(process)).cloned().collect();
    assert_eq!(listed(connector), own);
    assert!(wire.difference(&own).next().is_some(), "{wire:?}");
}

#[test]
fn the_readme_links_to_files_that_exist() {
    let readme = include_str!("../README.md");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let targets = readme.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    for target in targets.filter(|target| !target.starts_with("http")) {
        let (file, heading) = target.split_once('#').unwrap_or((target, ""));
        assert!(root.join(file).exists(), "{file} is linked, but is not there");
        if !heading.is_empty() {
            let text = std::fs::read_to_string(root.join(file)).expect("a text");
            let found = text.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == heading);
            assert!(found, "{file} has no heading for #{heading}");
        }
    }
}

/// What a heading is called in a link, as GitHub has it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// `file::test` in docs/guarantees.md and docs/reliability.md.
#[test]
fn every_test_that_stands_behind_a_guarantee_exists() {
    let guarantees = [include_str!("../docs/guarantees.md"), include_str!("../docs/reliability.md")].concat();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut named = 0;
    for (file, test) in guarantees.split('`').skip(1).step_by(2).filter_map(|name| name.split_once("::")) {
        let text = std::fs::read_to_string(tests.join(format!("{file}.rs"))).unwrap_or_default();
        assert!(text.contains(&format!("fn {test}()")), "{file}::{test} is no test");
        named += 1;
    }
    assert!(named > 40, "{named}");
}

/// The verbs that the program's own help lists.
fn verbs() -> BTreeSet<String> {
    let (_, help, _) = output(&["--help"]);
    let commands = help.split_once("Commands:\n").unwrap().1;
    let first_word = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let known: BTreeSet<String> = commands.lines().take_while(|line| !line.is_empty()).filter_map(first_word).collect();
    assert!(known.contains("run") && known.contains("explain"), "{known:?}");
    known
}

/// Hints are what people type: a string that begins with `lockstep VERB`, or goes on with `then lockstep VERB`.
#[test]
fn every_command_that_a_hint_names_exists() {
    let known = verbs();
    let (mut folders, mut found) = (vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for command in ["\"lockstep ", "then lockstep "].iter().flat_map(|start| text.split(start).skip(1)) {
                let verb: String = command.chars().take_while(char::is_ascii_alphabetic).collect();
                // `"lockstep {verb}"` and the like say it elsewhere.
                if !verb.is_empty() {
                    assert!(known.contains(&verb), "{}: there is no verb {verb:?}", path.display());
                    found += 1;
                }
            }
        }
    }
    assert!(found > 10, "{found} hints are seen");
}

/// `lockstep VERB` in any document: VERB is one of the program's.
#[test]
fn every_command_that_the_documents_name_exists() {
    let known = verbs();
    let documents = [
        include_str!("../README.md"),
        include_str!("../docs/architecture.md"),
        include_str!("../docs/configuration.md"),
        include_str!("../docs/errors.md"),
        include_str!("../docs/metrics.md"),
        include_str!("../config/lockstep.toml"),
    ];
    for document in documents {
        for line in document.lines() {
            // As code: between backticks, or at the beginning of a line of an example.
            let inline = line.split('`').skip(1).step_by(2).filter_map(|code| code.strip_prefix("lockstep "));
            for command in inline.chain(line.strip_prefix("lockstep ")) {
                let verb = command.split_whitespace().next().unwrap_or_default();
                assert!(known.contains(verb), "`lockstep {verb}` is documented, but there is no such verb: {line}");
            }
        }
    }
}
