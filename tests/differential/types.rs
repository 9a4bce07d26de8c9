//! Types and values at their edges, as SQL spells them: what columns of random tables are made of.

/// Extensions and types of one's own, in every database of the test. Names are awkward on purpose.
pub const SETUP: &str = r#"
CREATE EXTENSION hstore SCHEMA public; CREATE EXTENSION ltree SCHEMA public; CREATE EXTENSION citext SCHEMA public;
CREATE SCHEMA "od d.S";
CREATE TYPE "od d.S"."mo.od" AS ENUM ('sad', 'ok', '', 'ha"pp''y, \ {}');
CREATE TYPE public.pair AS (a int, "B b" text);
CREATE TYPE public.nested AS (p public.pair, l public.pair[], n numeric(6,2));
CREATE DOMAIN public.positive AS int CHECK (VALUE > 0);
CREATE DOMAIN public.words AS text[];
CREATE DOMAIN public.twin AS public.pair CHECK ((VALUE).a IS DISTINCT FROM 13);
CREATE DOMAIN public.price AS numeric(10,2);
CREATE TYPE public.floatrange AS RANGE (subtype = float8);
"#;

pub struct Type {
    /// As a column is declared.
    pub name: &'static str,
    /// May be part of a key: it has a btree order. Some values here are equal by it and have other texts.
    pub key: bool,
    /// Values are stored out of line where they are large, and then left out of the stream while unchanged.
    pub big: bool,
    pub values: &'static [&'static str],
}

const fn plain(name: &'static str, values: &'static [&'static str]) -> Type {
    Type { name, key: false, big: false, values }
}

const fn key(name: &'static str, values: &'static [&'static str]) -> Type {
    Type { name, key: true, big: false, values }
}

const fn big(name: &'static str, values: &'static [&'static str]) -> Type {
    Type { name, key: false, big: true, values }
}

/// Types of which a value is known that no row holds.
pub const STAND_INS: &[&str] = &[
    "int2",
    "int4",
    "int8",
    "oid",
    "text",
    "varchar(30)",
    "char(5)",
    "name",
    "bytea",
    "uuid",
    "date",
    "timestamp",
    "timestamptz",
    "float8",
    "numeric",
    "jsonb",
    "inet",
    "cidr",
    "macaddr",
    "macaddr8",
    "tsvector",
    "public.citext",
];

/// In a value: made longer than a page holds.
pub const LONG: &str = "@LONG@";

pub const TYPES: &[Type] = &[
    key("int2", &["-32768", "32767", "0", "1", "-1", "5", "6", "7"]),
    key("int4", &["-2147483648", "2147483647", "0", "1", "2", "3", "10", "-7", "42", "99"]),
    key("int8", &["-9223372036854775808", "9223372036854775807", "0", "9007199254740993", "1", "2", "3"]),
    key("oid", &["0", "4294967295", "16384", "2147483648"]),
    plain("float4", &["NaN", "Infinity", "-Infinity", "-0", "0", "0.1", "3.4028235e38", "1e-45", "16777217", "1e15"]),
    key(
        "float8",
        &["NaN", "Infinity", "-Infinity", "0", "-0", "5e-324", "0.30000000000000004", "1e15", "1e16", "-1.5"],
    ),
    plain("float8", &["-0", "1.7976931348623157e308", "123456789012345680", "2.2250738585072014e-308"]),
    key(
        "numeric",
        &[
            "NaN",
            "Infinity",
            "-Infinity",
            "0",
            "0.0",
            "1.10",
            "1.1",
            "-1e30",
            "12345678901234567890.12345678901234567890",
            "1e-20",
        ],
    ),
    plain("numeric(1000,500)", &["0", "-1e499", "1e-500", "NaN"]),
    plain("numeric", &["0.00", "1.0", "1.00", "-0.10", "1e100", "100000000000000000000"]),
    key("numeric(10,2)", &["0", "99999999.99", "-99999999.99", "0.01", "NaN", "5"]),
    key("bool", &["t", "f"]),
    key(
        "text",
        &["", " ", "a", "A", "b ", "é", "e\u{301}", "𝄞", "NULL", "\\", "'\"", "\t\n\r", "\u{1}", "{}", "z\u{2028}"],
    ),
    big("text", &["", "x", "@LONG@", "y@LONG@", "__debezium_unavailable_value", "\u{fffd}", "ÿ\u{10ffff}@LONG@"]),
    key("varchar(30)", &["", "v", "w w", "ß", "null", "\\N", "\\."]),
    key("char(5)", &["a", "b", "", "é", "12345"]),
    plain(r#""char""#, &["", "a", "\\", "'"]),
    key("name", &["", "n", "Name", "a_name_of_sixty_three_bytes_a_name_of_sixty_three_bytes_a_name_o"]),
    key("bytea", &["\\x", "\\x00ff", "\\x5c", "\\x0a0d09", "\\xdeadbeef"]),
    big("bytea", &["\\x", "\\x00@LONG@", "\\xff@LONG@"]),
    key(
        "date",
        &["-infinity", "infinity", "0044-03-15 BC", "4713-01-01 BC", "5874897-12-31", "2024-02-29", "1970-01-01"],
    ),
    key("time", &["00:00", "24:00", "23:59:59.999999", "12:00:00.5"]),
    plain("time(3)", &["00:00", "24:00:00", "23:59:59.999", "01:02:03"]),
    key("timetz", &["00:00+15:59", "24:00-15:59", "12:00:00.000001+00", "12:00+05:30", "12:00-01:02:03"]),
    key(
        "timestamp",
        &["infinity", "-infinity", "4713-01-01 00:00 BC", "294276-12-31 23:59:59.999999", "2024-06-30 12:00:00.1"],
    ),
    plain("timestamp(3)", &["infinity", "0001-12-31 23:59:59.999 BC", "1969-12-31 23:59:59.999", "2024-06-30 12:00"]),
    plain("timestamp(0)", &["2024-06-30 12:00:01", "-infinity", "9999-12-31 23:59:59"]),
    key(
        "timestamptz",
        &["infinity", "-infinity", "4714-11-24 00:00+00 BC", "294276-12-31 23:59:59.999999+00", "2024-03-31 02:30+01"],
    ),
    plain("timestamptz(3)", &["1900-01-01 00:00:00.123+00", "2024-06-30 12:00+05:30", "infinity"]),
    key(
        "interval",
        &[
            "0",
            "1 mon",
            "30 days",
            "1 year 2 mons -3 days",
            "-178000000 years",
            "178000000 years",
            "04:05:06.000007",
            "-00:00:00.000001",
        ],
    ),
    plain("interval(2)", &["1.25 seconds", "-1 day", "1 mon -1 day +00:00:01"]),
    plain("money", &["-92233720368547758.08", "92233720368547758.07", "0", "-0.05", "1234.5", "999999.99"]),
    key(
        "uuid",
        &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        ],
    ),
    big(
        "json",
        &[" {\"a\" : 1.0,  \"a\":2}", "null", "\"\\u0041\"", "[]", "1e400", "\"@LONG@\"", "{\"k\": \"é@LONG@\"}"],
    ),
    big("jsonb", &["{\"a\": 1.0, \"b\": [null, true]}", "null", "\"\"", "-0.0", "[1.10, \"@LONG@\"]"]),
    key("jsonb", &["{}", "[]", "1", "1.0", "\"a\"", "null", "{\"a\": {\"b\": []}}"]),
    big(
        "xml",
        &["<a/>", "text &amp; more", "<?xml version=\"1.0\"?><a>é</a>", "", "<b>@LONG@</b>", "<!-- c --><x y='z'/>"],
    ),
    plain("jsonpath", &["$.a[*] ? (@ > 1)", "strict $.\"b c\"", "lax $"]),
    key("inet", &["::1/64", "10.0.0.1", "255.255.255.255", "0.0.0.0/0", "::ffff:1.2.3.4"]),
    key("cidr", &["10.0.0.0/8", "::/0", "192.168.100.128/25"]),
    key("macaddr", &["08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff"]),
    key("macaddr8", &["08:00:2b:01:02:03:04:05", "00:00:00:00:00:00:00:00"]),
    key("bit(5)", &["10101", "00000", "11111"]),
    key("bit varying", &["", "0", "1", "101010101010101010101"]),
    plain("bit varying(1)", &["", "0", "1"]),
    plain("bit varying(1)[]", &["{\"\",0,NULL,1}", "{}"]),
    key("int4range", &["empty", "[1,3)", "(,)", "[5,)", "(,7]"]),
    plain("numrange", &["[1.0,2.00]", "empty", "(,5.5)", "[1,1]"]),
    plain("tstzrange", &["[\"2024-01-01 00:00+02\",)", "[-infinity,infinity]", "empty"]),
    plain("daterange", &["[2024-01-01,2024-02-01)", "(,0044-01-01 BC)"]),
    plain("public.floatrange", &["[0.1,0.2]", "[-Infinity,NaN]", "empty"]),
    plain("public.floatmultirange", &["{}", "{[-Infinity,0.1],(5,NaN]}"]),
    plain("public.floatrange[]", &["{\"[0.1,0.2]\",NULL,empty}"]),
    key("int4multirange", &["{}", "{[1,3),[7,9)}", "{(,)}"]),
    plain("tstzmultirange", &["{}", "{[\"2024-01-01 00:00+00\",\"2024-01-02 00:00+00\")}"]),
    key("int4[]", &["{}", "{1,2}", "{NULL}", "{{1,2},{3,4}}", "[5:7]={1,2,3}", "[0:0][-1:0]={{1,NULL}}"]),
    big(
        "text[]",
        &["{}", "{NULL,\"NULL\",\"\"}", "{\"a,b\",\"c\\\"d\",\"e\\\\f\",\"{}\"}", "{{a},{@LONG@}}", "[2:2]={é}"],
    ),
    plain("numeric[]", &["{NaN,1.10,-Infinity}", "{1.0,1.00}"]),
    plain("bytea[]", &["{\"\\\\x00\",NULL}", "{}"]),
    plain("float8[]", &["{NaN,-0,1e-320}", "{0.1,NULL}"]),
    plain("timestamptz[]", &["{infinity,\"2024-01-01 00:00+00\",NULL}"]),
    plain("json[]", &["{\"{\\\"a\\\": 1}\",null}", "{}"]),
    plain("varchar(4)[]", &["{abcd,\"\",NULL}"]),
    plain("bool[]", &["{t,f,NULL}"]),
    plain("money[]", &["{\"$1,234.50\",NULL}"]),
    plain("interval[]", &["{\"1 mon\",\"-00:00:01\"}"]),
    plain("point", &["(1e-300,-0)", "(Infinity,NaN)", "(0.1,0.2)"]),
    plain("line", &["{1,-1,0}"]),
    plain("lseg", &["[(0,0),(1,1)]"]),
    plain("box", &["(1,1),(0,0)"]),
    plain("box[]", &["{(1,1),(0,0);(3,3),(2,2)}", "{NULL;(0.5,0),(0,0)}", "[3:3]={(1,1),(1,1)}"]),
    plain("path", &["[(0,0),(1,1)]", "((0,0),(1,1),(2,0))"]),
    plain("polygon", &["((0,0),(1,1),(2,0))"]),
    plain("circle", &["<(0.1,-0.2),3>"]),
    key("tsvector", &["", "'a':1 'b':2A", "'it''s' 'x \\\\ y':3C"]),
    plain("tsquery", &["'a' & !'b' | 'c':*AB", "'x' <2> 'y'", ""]),
    key("pg_lsn", &["0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"]),
    key("xid8", &["0", "18446744073709551615", "3"]),
    plain("xid", &["0", "4294967295"]),
    plain("cid", &["7"]),
    plain("tid", &["(0,1)", "(4294967295,65535)"]),
    plain("pg_snapshot", &["10:20:10,14,15", "1:1:"]),
    plain("txid_snapshot", &["10:20:10,14,15"]),
    plain("int2vector", &["1 2 -3", ""]),
    key("oidvector", &["1 4294967295", ""]),
    plain("refcursor", &["a cursor", ""]),
    plain("regclass", &["pg_class", "-", "information_schema.tables"]),
    plain("regtype", &["integer", "timestamp with time zone", "public.pair[]", "\"od d.S\".\"mo.od\""]),
    plain("regproc", &["pg_catalog.pg_backend_pid", "-"]),
    plain("regprocedure", &["upper(text)", "-"]),
    plain("regoper", &["pg_catalog.||/", "0"]),
    plain("regoperator", &["+(integer,integer)", "-(NONE,integer)", "0"]),
    plain("regconfig", &["simple", "pg_catalog.english"]),
    plain("regdictionary", &["simple"]),
    plain("regcollation", &["\"C\"", "\"POSIX\""]),
    plain("regnamespace", &["pg_catalog", "\"od d.S\""]),
    plain("regrole", &["postgres"]),
    key(r#""od d.S"."mo.od""#, &["sad", "ok", "", "ha\"pp'y, \\ {}"]),
    plain(r#""od d.S"."mo.od"[]"#, &["{sad,NULL}", "{\"\",\"ha\\\"pp'y, \\\\ {}\"}", "{}"]),
    key("public.pair", &["(1,a)", "(,)", "(2,\"\")", "(3,\"(,\"\"\\\\\")"]),
    big("public.nested", &["(\"(1,a)\",{},1.00)", "(,\"{\"\"(2,b)\"\",NULL}\",NaN)", "(\"(1,@LONG@)\",,)"]),
    plain("public.pair[]", &["{\"(1,a)\",NULL}", "{\"(,\\\"\\\\\\\"\\\")\"}"]),
    key("public.positive", &["1", "2", "2147483647", "17"]),
    plain("public.positive[]", &["{1,NULL}"]),
    big("public.words", &["{}", "{a,NULL}", "[3:4]={x,@LONG@}"]),
    plain("public.twin", &["(1,x)", "(,)"]),
    plain("public.price", &["1", "1.5", "-0.01", "NaN"]),
    big("public.hstore", &["", "a=>1, b=>NULL", "\"k \\\"q\\\"\"=>\"v,=>\\\\\"", "k=>@LONG@"]),
    key("public.ltree", &["", "a", "a.b.c", "Top.Sub"]),
    plain("public.lquery", &["a.*.b", "*{1,2}.c|d"]),
    key("public.citext", &["", "Abc", "aBC", "é", "b"]),
    plain("public.citext[]", &["{A,a,NULL}"]),
];
