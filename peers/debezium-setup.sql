-- What stands at the source before Debezium starts, and at the sinks, empty.
CREATE SCHEMA deb AUTHORIZATION lockstep;
SET ROLE lockstep;
SET search_path = deb;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy; "very"');
CREATE TABLE kinds (id int PRIMARY KEY, i2 int2, i8 int8, f4 float4, f8 float8, n numeric, n2 numeric(20,5), b bool, t text, vc varchar(30),
    ch char(5), by bytea, d date, ts timestamp, ts3 timestamp(3), tz timestamptz, ti time, iv interval, u uuid, j json, jb jsonb, m mood,
    net inet, bits bit(5), ia int[], ta text[], r int4range, p point);
-- A key change keeps a big value that Debezium was not sent.
CREATE TABLE big (id int PRIMARY KEY, v int, big text, bytes bytea);
ALTER TABLE big ALTER big SET STORAGE EXTERNAL, ALTER bytes SET STORAGE EXTERNAL;
CREATE TABLE busy (id int PRIMARY KEY, v int NOT NULL);
