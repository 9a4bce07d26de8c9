//! Relation versions over all that decides how a value is written: every type, and modes that between them have every encoding.
//!
//! Each has three columns: `id`, the key, which is a number or of the type; `c`, of the type; `n`, of the type and not NULL. Built
//! once for each choice.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use lockstep::codec::avro::SchemaIds;
use lockstep::codec::mapping::{self, oid};
use lockstep::codec::{Decoder, Encoder, Event, Snapshot, complete};
use lockstep::lsn::Lsn;
use lockstep::relation::{
    BinaryMode, Column, ConversionFailure, DecimalMode, Fingerprint, Format, HstoreMode, IntervalMode, Modes, Relation,
    TableName, TimeMode, TypeKind, TypeName, UnknownMode,
};

use super::input::Input;

pub const EVENT: Event = Event {
    last_commit_lsn: Some(Lsn(16)),
    lsn: Lsn(17),
    xid: Some(5),
    commit_time_us: 1_700_000_000_123_456,
    snapshot: Snapshot::False,
    now_ns: 1_700_000_001_000_000_007,
    block: None,
    origin: None,
};

const IDS: SchemaIds = SchemaIds { key: Some(1), value: 2 };

/// A relation version in one format.
pub struct Case {
    pub relation: Arc<Relation>,
    pub encoder: Encoder,
    pub decoder: Decoder,
}

impl Case {
    fn new(relation: Relation) -> Case {
        let relation = Arc::new(complete(relation, "p").expect("a relation that can be written"));
        let encoder = match relation.format {
            Format::Json => Encoder::new(relation.clone(), "p", "db"),
            Format::Avro => Encoder::avro(relation.clone(), IDS, "p", "db").expect("schemas that were just made"),
        };
        let decoder = Decoder::of(relation.clone()).expect("schemas that were just made");
        Case { relation, encoder, decoder }
    }
}

/// The same relation version in both formats.
pub struct Cases {
    pub json: Case,
    pub avro: Case,
}

thread_local! {
    static BUILT: RefCell<HashMap<(usize, usize, bool), Rc<Cases>>> = RefCell::default();
}

/// The relation version that the input's next three bytes choose.
pub fn choose(input: &mut Input<'_>) -> Rc<Cases> {
    let choice = (input.pick(types().count()), input.pick(MODES), input.pick(2) == 1);
    let build = || {
        let json = relation(choice);
        let avro = Relation { format: Format::Avro, ..json.clone() };
        Rc::new(Cases { json: Case::new(json), avro: Case::new(avro) })
    };
    BUILT.with_borrow_mut(|built| built.entry(choice).or_insert_with(build).clone())
}

fn relation((of, modes, key_of_type): (usize, usize, bool)) -> Relation {
    let of = types().nth(of).expect("below the count");
    let modes = self::modes(modes);
    let int4 = Type { oid: oid::INT4, name: "int4".to_owned(), typmod: -1, kind: TypeKind::Base };
    let columns = [("id", if key_of_type { &of } else { &int4 }, Some(0)), ("c", &of, None), ("n", &of, None)];
    let column = |(name, of, key): (&str, &Type, Option<u16>)| {
        let mut column = Column {
            name: name.into(),
            type_oid: of.oid,
            type_name: of.name.clone(),
            typmod: of.typmod,
            kind: of.kind.clone(),
            nullable: name == "c",
            default: None,
            key,
            exact: false,
        };
        column.exact = mapping::exact(&column, &modes);
        column
    };
    Relation {
        fingerprint: Fingerprint(0),
        oid: 1,
        name: TableName::new("public", "t"),
        topic: "p.public.t".into(),
        partitions: 1,
        format: Format::Json,
        columns: columns.into_iter().map(column).collect(),
        modes,
        avro: None,
        transforms: vec![],
        hidden: vec![],
        composites: vec![],
    }
}

const MODES: usize = 6;

fn modes(choice: usize) -> Modes {
    let default = Modes::default();
    match choice {
        0 => default,
        1 => Modes {
            decimal: DecimalMode::Precise,
            time: TimeMode::Connect,
            interval: IntervalMode::Numeric,
            binary: BinaryMode::Base64,
            hstore: HstoreMode::Map,
            unknown: UnknownMode::Bytes,
            schemas: true,
            ..default
        },
        2 => Modes {
            decimal: DecimalMode::Double,
            time: TimeMode::Nanoseconds,
            binary: BinaryMode::Hex,
            unknown: UnknownMode::Skip,
            conversion_failure: ConversionFailure::Null,
            ..default
        },
        3 => {
            Modes { time: TimeMode::Microseconds, binary: BinaryMode::Base64UrlSafe, null_as_default: true, ..default }
        }
        4 => Modes { time: TimeMode::AdaptiveTimeMicroseconds, unknown: UnknownMode::Bytes, ..default },
        _ => Modes { time: TimeMode::Isostring, decimal: DecimalMode::Precise, source_types: true, ..default },
    }
}

/// A type as columns have it.
pub struct Type {
    oid: u32,
    name: String,
    typmod: i32,
    kind: TypeKind,
}

/// The modifier of numeric(10,2).
const NUMERIC_10_2: i32 = (10 << 16) + 2 + 4;
/// OIDs that are nobody's.
const OTHER: u32 = 70_000;

/// What [`types`] has, and arrays of all of them.
fn plain_types() -> impl Iterator<Item = Type> {
    let base = |(oid, typmod): (u32, i32)| Type { oid, name: String::new(), typmod, kind: TypeKind::Base };
    let extension = |name: &str| Type { oid: OTHER, name: format!("public.{name}"), typmod: -1, kind: TypeKind::Base };
    let made = |kind| Type { oid: OTHER, name: "public.made".to_owned(), typmod: -1, kind };
    let labels = vec!["sad".to_owned(), "it's, \"ok\"".to_owned()];
    let domain = TypeName { oid: oid::NUMERIC, name: "numeric".into(), typmod: NUMERIC_10_2, kind: TypeKind::Base };
    let bases = [
        (oid::BOOL, -1),
        (oid::BYTEA, -1),
        (oid::INT8, -1),
        (oid::INT2, -1),
        (oid::INT2VECTOR, -1),
        (oid::INT4, -1),
        (oid::TEXT, -1),
        (oid::OIDVECTOR, -1),
        (oid::JSON, -1),
        (oid::POINT, -1),
        (oid::FLOAT4, -1),
        (oid::FLOAT8, -1),
        (oid::MONEY, -1),
        (oid::DATE, -1),
        (oid::TIME, -1),
        (oid::TIME, 3),
        (oid::TIMESTAMP, -1),
        (oid::TIMESTAMP, 3),
        (oid::TIMESTAMPTZ, -1),
        (oid::TIMESTAMPTZ, 0),
        (oid::INTERVAL, -1),
        (oid::TIMETZ, -1),
        (oid::BIT, 1),
        (oid::VARBIT, 12),
        (oid::NUMERIC, -1),
        (oid::NUMERIC, NUMERIC_10_2),
        (oid::UUID, -1),
        (oid::TSTZRANGE, -1),
    ];
    let names = ["hstore", "ltree", "geometry", "vector", "halfvec", "sparsevec", "other"];
    let kinds = [
        TypeKind::Enum { labels },
        TypeKind::Domain { base: Box::new(domain) },
        TypeKind::Composite,
        TypeKind::Range,
        TypeKind::Multirange,
    ];
    bases.into_iter().map(base).chain(names.into_iter().map(extension)).chain(kinds.into_iter().map(made))
}

/// Every type that is written in a way of its own, and an array of each.
fn types() -> impl Iterator<Item = Type> {
    let array = |of: Type| {
        let element = TypeName { oid: of.oid, name: of.name, typmod: of.typmod, kind: of.kind };
        Type {
            oid: OTHER,
            name: "public._made".to_owned(),
            typmod: -1,
            kind: TypeKind::Array { element: Box::new(element), delimiter: b',' },
        }
    };
    plain_types().chain(plain_types().map(array))
}
