-- What stands at the source before anything starts: a copy of it comes first, changes.sql through the stream.
CREATE EXTENSION postgis;
CREATE EXTENSION vector;
CREATE EXTENSION hstore;
CREATE SCHEMA peers AUTHORIZATION lockstep;
SET ROLE lockstep;
SET search_path = peers, public;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy; "very"');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE kinds (id int PRIMARY KEY, i2 int2, i8 int8, f4 float4, f8 float8, n numeric, n2 numeric(20,5), b bool NOT NULL DEFAULT true,
    t text, vc varchar(30) DEFAULT 'none', ch char(5), by bytea, d date, ts timestamp, ts3 timestamp(3), tz timestamptz, ti time, tt timetz,
    iv interval, u uuid, j json, jb jsonb, x xml, m mood, pos positive, net inet, bits bit(5), ia int[], ta text[], r int4range, p point);
CREATE TABLE "Odd näme" ("Kéy" text, "select" int, "v q" text, PRIMARY KEY ("Kéy", "select"));
-- Old rows are whole: an unchanged big value is in the record.
CREATE TABLE whole (id int PRIMARY KEY, v int, big text);
ALTER TABLE whole REPLICA IDENTITY FULL;
ALTER TABLE whole ALTER big SET STORAGE EXTERNAL;
-- They are not: Debezium's placeholder stands for it.
CREATE TABLE placeholder (id int PRIMARY KEY, v int, big text);
ALTER TABLE placeholder ALTER big SET STORAGE EXTERNAL;
CREATE TABLE extended (id int PRIMARY KEY, g geometry NOT NULL, gg geography(Point, 4326), v vector(3) NOT NULL, h hstore);

CREATE PROCEDURE fill(first int) LANGUAGE sql AS $$
INSERT INTO kinds (id) VALUES (first);
INSERT INTO kinds VALUES (first + 1, -32768, -9223372036854775808, 'NaN', '-Infinity', -0.00001, -0.00001, false,
    E'tab\t nl\n cr\r bs\\ "q" ''s'' \u2028 𝄞 \x01', 'é', 'ab', '\x00ff5c', '0044-03-15', '0001-01-01 12:00:00', '2024-01-01 00:00:00.123',
    '2024-01-01 00:00:00.123456+00', '23:59:59.999999', '23:59:59.999999+05:30', '1 year 2 mons -3 days 04:05:06.000007',
    '00000000-0000-0000-0000-000000000000', '{"a" :  1.0, "a": 2}', '{"k": [1e400, null, "\\"], "z": -0.0}', '<a>&amp;</a>', 'happy; "very"', 7,
    '::1/64', B'10101', '{}', '{a,NULL,"NULL","x,\"y\\"}', 'empty', '(1e-300,-0)');
INSERT INTO kinds VALUES (first + 2, 32767, 9223372036854775807, 3.4028235e38, 5e-324, 123456789012345678901234567890.000000000000000001,
    99999999999999.99999, true, '', '', '', '', '9999-12-31', '9999-12-31 23:59:59.999999', '1970-01-01', '0001-01-01 00:00:00+00', '00:00',
    '00:00-12:00', '178000 years', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '""', '""', '', 'sad', 1, '255.255.255.255', B'00000', '{1,NULL,-3}',
    '{}', '(,)', '(1.5,2.5)');
INSERT INTO kinds (id, f8, n, t) SELECT first + i, 0.1 * i + 1e-15, i / 7.0, repeat(chr(i), i) FROM generate_series(10, 300) i;
INSERT INTO "Odd näme" SELECT 'k' || i, first, repeat('ü"''\', i) FROM generate_series(1, 20) i;
INSERT INTO whole SELECT first + i, i, repeat(md5(i::text), 300) FROM generate_series(1, 20) i;
INSERT INTO placeholder SELECT first + i, i, repeat(md5(i::text), 300) FROM generate_series(1, 20) i;
INSERT INTO extended VALUES (first, 'SRID=4326;POINT(8.5 47.25)', 'POINT(8.5 47.25)', '[1,2.5,-3]', 'a=>1, b=>NULL'),
    (first + 1, 'POLYGON((0 0,0 1,1 1,0 0))', NULL, '[0,0,0]', ''), (first + 2, 'POINT ZM (1 2 3 4)', NULL, '[0,0,0]', NULL),
    (first + 3, 'POINT ZM (1 2 3 4)', NULL, '[1e-7,2e10,0.1]', 'k=>"v \"q\""');
$$;
CALL fill(1000);
