//! Round trips through an encoder of our own, truncated messages, and bytes that are no message at all.

use proptest::prelude::*;

use super::*;
use crate::value::{Cell, Row, RowBuf};

/// What an encoder needs to know of a message, with its rows owned.
#[derive(Debug, Clone)]
enum Sent {
    Begin { lsn: u64, time: i64, xid: u32 },
    Commit { lsn: u64, end: u64, time: i64 },
    Origin { lsn: u64, name: String },
    Relation(RelationBody),
    Type { oid: u32, schema: String, name: String },
    Insert { oid: u32, new: Vec<Value> },
    Update { oid: u32, old: Option<(OldKind, Vec<Value>)>, new: Vec<Value> },
    Delete { oid: u32, old: (OldKind, Vec<Value>) },
    Truncate { oids: Vec<u32>, flags: u8 },
    Message { transactional: bool, lsn: u64, prefix: String, content: Vec<u8> },
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Null,
    Absent,
    Text(Vec<u8>),
}

fn encode(sent: &Sent) -> Vec<u8> {
    let mut out = Vec::new();
    match sent {
        Sent::Begin { lsn, time, xid } => {
            out.push(b'B');
            out.extend(lsn.to_be_bytes());
            out.extend(time.to_be_bytes());
            out.extend(xid.to_be_bytes());
        }
        Sent::Commit { lsn, end, time } => {
            out.extend(b"C\0");
            out.extend(lsn.to_be_bytes());
            out.extend(end.to_be_bytes());
            out.extend(time.to_be_bytes());
        }
        Sent::Origin { lsn, name } => {
            out.push(b'O');
            out.extend(lsn.to_be_bytes());
            put_name(&mut out, name);
        }
        Sent::Relation(body) => put_relation(&mut out, body),
        Sent::Type { oid, schema, name } => {
            out.push(b'Y');
            out.extend(oid.to_be_bytes());
            put_name(&mut out, if schema == "pg_catalog" { "" } else { schema });
            put_name(&mut out, name);
        }
        Sent::Insert { oid, new } => {
            out.push(b'I');
            out.extend(oid.to_be_bytes());
            put_row(&mut out, b'N', new);
        }
        Sent::Update { oid, old, new } => {
            out.push(b'U');
            out.extend(oid.to_be_bytes());
            if let Some((kind, old)) = old {
                put_row(&mut out, kind_byte(*kind), old);
            }
            put_row(&mut out, b'N', new);
        }
        Sent::Delete { oid, old: (kind, old) } => {
            out.push(b'D');
            out.extend(oid.to_be_bytes());
            put_row(&mut out, kind_byte(*kind), old);
        }
        Sent::Truncate { oids, flags } => {
            out.push(b'T');
            out.extend(u32::try_from(oids.len()).unwrap().to_be_bytes());
            out.push(*flags);
            oids.iter().for_each(|oid| out.extend(oid.to_be_bytes()));
        }
        Sent::Message { transactional, lsn, prefix, content } => {
            out.push(b'M');
            out.push(u8::from(*transactional));
            out.extend(lsn.to_be_bytes());
            put_name(&mut out, prefix);
            out.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
            out.extend(content);
        }
    }
    out
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    out.extend(name.as_bytes());
    out.push(0);
}

fn put_relation(out: &mut Vec<u8>, body: &RelationBody) {
    out.push(b'R');
    out.extend(body.oid.to_be_bytes());
    put_name(out, if body.schema == "pg_catalog" { "" } else { &body.schema });
    put_name(out, &body.table);
    out.push(match body.replica_identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    });
    out.extend(u16::try_from(body.columns.len()).unwrap().to_be_bytes());
    for column in &body.columns {
        out.push(u8::from(column.key));
        put_name(out, &column.name);
        out.extend(column.type_oid.to_be_bytes());
        out.extend(column.typmod.to_be_bytes());
    }
}

fn kind_byte(kind: OldKind) -> u8 {
    match kind {
        OldKind::Key => b'K',
        OldKind::Full => b'O',
    }
}

fn put_row(out: &mut Vec<u8>, mark: u8, row: &[Value]) {
    out.push(mark);
    out.extend(u16::try_from(row.len()).unwrap().to_be_bytes());
    for value in row {
        match value {
            Value::Null => out.push(b'n'),
            Value::Absent => out.push(b'u'),
            Value::Text(text) => {
                out.push(b't');
                out.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                out.extend(text);
            }
        }
    }
}

fn owned(row: &[Value]) -> RowBuf {
    row.iter()
        .map(|value| match value {
            Value::Null => Cell::Null,
            Value::Absent => Cell::Absent,
            Value::Text(text) => Cell::Text(text),
        })
        .collect()
}

/// Asserts that the bytes decode to exactly what was sent.
fn check(sent: &Sent) {
    let bytes = encode(sent);
    let mut scratch = Scratch::default();
    let message = decode(&bytes, &mut scratch).unwrap();
    let (new, old) = (Row::new(&bytes, &scratch.new), Row::new(&bytes, &scratch.old));
    let rows = |n: &[Value], o: &[Value]| assert!(new == owned(n).row() && old == owned(o).row());
    // Of a key row what is NULL was not sent.
    let keys = |kind: OldKind, row: &[Value]| -> Vec<Value> {
        let key = |value: &Value| if *value == Value::Null { Value::Absent } else { value.clone() };
        if kind == OldKind::Key { row.iter().map(key).collect() } else { row.to_vec() }
    };
    let wanted = match sent.clone() {
        Sent::Begin { lsn, time, xid } => Message::Begin { final_lsn: Lsn(lsn), commit_time_us: unix_us(time), xid },
        Sent::Commit { lsn, end, time } => {
            Message::Commit { commit_lsn: Lsn(lsn), end_lsn: Lsn(end), commit_time_us: unix_us(time) }
        }
        Sent::Origin { lsn, ref name } => return assert_eq!(message, Message::Origin { commit_lsn: Lsn(lsn), name }),
        Sent::Relation(body) => Message::Relation(body),
        Sent::Type { oid, ref schema, ref name } => return assert_eq!(message, Message::Type { oid, schema, name }),
        Sent::Insert { oid, new } => {
            rows(&new, &[]);
            Message::Insert { oid }
        }
        Sent::Update { oid, old, new } => {
            rows(&new, &old.as_ref().map_or(vec![], |(kind, old)| keys(*kind, old)));
            Message::Update { oid, old: old.map(|(kind, _)| kind) }
        }
        Sent::Delete { oid, old: (kind, old) } => {
            rows(&[], &keys(kind, &old));
            Message::Delete { oid, old: kind }
        }
        Sent::Truncate { oids, flags } => {
            Message::Truncate { oids, cascade: flags & 1 != 0, restart_identity: flags & 2 != 0 }
        }
        Sent::Message { transactional, lsn, ref prefix, ref content } => {
            return assert_eq!(message, Message::Message { transactional, lsn: Lsn(lsn), prefix, content });
        }
    };
    assert_eq!(message, wanted);
}

fn name() -> impl Strategy<Value = String> {
    "[^\\x00]{1,20}"
}

fn row() -> impl Strategy<Value = Vec<Value>> {
    let value = prop_oneof![
        Just(Value::Null),
        Just(Value::Absent),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::Text),
    ];
    prop::collection::vec(value, 0..20)
}

fn kind() -> impl Strategy<Value = OldKind> {
    prop_oneof![Just(OldKind::Key), Just(OldKind::Full)]
}

fn relation_body() -> impl Strategy<Value = RelationBody> {
    let identity = prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Nothing),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Index),
    ];
    let column = (any::<bool>(), name(), any::<u32>(), any::<i32>())
        .prop_map(|(key, name, type_oid, typmod)| RelationColumn { key, name, type_oid, typmod });
    let schema = prop_oneof![Just("pg_catalog".to_owned()), name()];
    (any::<u32>(), schema, name(), identity, prop::collection::vec(column, 0..10)).prop_map(
        |(oid, schema, table, replica_identity, columns)| RelationBody {
            oid,
            schema,
            table,
            replica_identity,
            columns,
        },
    )
}

fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        any::<(u64, i64, u32)>().prop_map(|(lsn, time, xid)| Sent::Begin { lsn, time, xid }),
        any::<(u64, u64, i64)>().prop_map(|(lsn, end, time)| Sent::Commit { lsn, end, time }),
        (any::<u64>(), name()).prop_map(|(lsn, name)| Sent::Origin { lsn, name }),
        relation_body().prop_map(Sent::Relation),
        (any::<u32>(), name(), name()).prop_map(|(oid, schema, name)| Sent::Type { oid, schema, name }),
        (any::<u32>(), row()).prop_map(|(oid, new)| Sent::Insert { oid, new }),
        (any::<u32>(), prop::option::of((kind(), row())), row()).prop_map(|(oid, old, new)| Sent::Update {
            oid,
            old,
            new
        }),
        (any::<u32>(), (kind(), row())).prop_map(|(oid, old)| Sent::Delete { oid, old }),
        (prop::collection::vec(any::<u32>(), 0..10), 0u8..4).prop_map(|(oids, flags)| Sent::Truncate { oids, flags }),
        (any::<bool>(), any::<u64>(), name(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(transactional, lsn, prefix, content)| Sent::Message { transactional, lsn, prefix, content }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_message_comes_back_as_it_was_sent(sent in sent()) {
        check(&sent);
    }

    #[test]
    fn a_cut_or_longer_message_is_an_error(sent in sent(), extra in any::<u8>()) {
        let mut bytes = encode(&sent);
        let mut scratch = Scratch::default();
        for len in 0..bytes.len() {
            prop_assert!(decode(&bytes[..len], &mut scratch).is_err());
        }
        bytes.push(extra);
        prop_assert_eq!(decode(&bytes, &mut scratch), Err(DecodeError::Trailing(1)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), tag in "[BCORYIUDTM]") {
        let mut scratch = Scratch::default();
        let _ = decode(&bytes, &mut scratch);
        if let Some(first) = bytes.first_mut() {
            *first = tag.as_bytes()[0];
        }
        let _ = decode(&bytes, &mut scratch);
    }

    #[test]
    fn a_message_with_some_bytes_changed_never_panics(
        sent in sent(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut bytes = encode(&sent);
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        let mut scratch = Scratch::default();
        if decode(&bytes, &mut scratch).is_ok() {
            // Whatever was accepted lies inside the message: walking every cell does not panic.
            let cells = |cells: &[CellRef]| Row::new(&bytes, cells).iter().filter_map(Cell::text).map(<[u8]>::len).sum::<usize>();
            prop_assert!(cells(&scratch.new) + cells(&scratch.old) <= bytes.len());
        }
    }
}

#[test]
fn a_count_reserves_nothing_that_can_not_be_there() {
    let mut scratch = Scratch::default();
    assert_eq!(decode(b"I\0\0\0\x01N\xff\xffn", &mut scratch), Err(DecodeError::CutOff));
    assert_eq!(scratch.new.capacity(), 0);
    assert_eq!(decode(b"T\xff\xff\xff\xff\0\0\0\0\x01", &mut scratch), Err(DecodeError::CutOff));
    assert_eq!(decode(b"M\0\0\0\0\0\0\0\0\0p\0\xff\xff\xff\xffx", &mut scratch), Err(DecodeError::CutOff));
}

#[test]
fn what_was_not_asked_for_is_named() {
    let mut scratch = Scratch::default();
    assert_eq!(decode(b"I\0\0\0\x01N\0\x01b\0\0\0\x01x", &mut scratch), Err(DecodeError::Binary));
    for tag in *b"SEcAbPKrp" {
        assert_eq!(decode(&[tag], &mut scratch), Err(DecodeError::Unasked(tag)));
    }
    assert_eq!(decode(b"O\0\0\0\0\0\0\0\0\xff\0", &mut scratch), Err(DecodeError::Name));
    assert_eq!(decode(b"", &mut scratch), Err(DecodeError::CutOff));
    assert_eq!(DecodeError::Unasked(b'S').to_string(), "message type 'S' belongs to no protocol that was asked for");
}
