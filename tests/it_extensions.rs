//! PostGIS and pgvector on the whole way. Only a set of services made with `--extensions` has them (`scripts/test --postgres
//! extensions`); elsewhere this says that it was not run. What records hold of their types is in tests/golden (07-postgis,
//! 07-pgvector).

mod support;

use support::scene::{Keyed, PATIENCE, Scene, text};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

/// Every type, and arrays and domains of it, plain and with modifiers; keys of it where it has an order.
const SCHEMA: &str = "
CREATE DOMAIN public.spot AS geometry(Point, 4326) CHECK (ST_X(VALUE) < 181);
CREATE TYPE public.pair AS (g geometry, v vector);
CREATE TABLE public.shapes (id int PRIMARY KEY, g geometry, pt geometry(Point, 4326) NOT NULL, zm geometry(PointZM), poly geometry(Polygon, 3857),
    gg geography, gp geography(PointZ, 4326), ga geometry[], gga geography[], s public.spot, sa public.spot[], b2 box2d, b3 box3d,
    b2a box2d[], r raster, p public.pair, pa public.pair[], ba box[]);
CREATE TABLE public.vectors (id int PRIMARY KEY, v vector NOT NULL, v3 vector(3), h halfvec NOT NULL, h2 halfvec(2), s sparsevec NOT NULL, s5 sparsevec(5), va vector[],
    ha halfvec[], sa sparsevec[]);
CREATE TABLE public.by_shape (g geometry PRIMARY KEY, v int);
CREATE TABLE public.by_vector (k vector(2) PRIMARY KEY, v int);
CREATE TABLE public.whole (id int, g geometry, v vector);
ALTER TABLE public.whole REPLICA IDENTITY FULL;
ALTER TABLE public.shapes ALTER g SET STORAGE EXTERNAL;
ALTER TABLE public.vectors ALTER v SET STORAGE EXTERNAL;
";

const TABLES: [Keyed; 5] = [
    ("public.shapes", &["id"]),
    ("public.vectors", &["id"]),
    ("public.by_shape", &["g"]),
    ("public.by_vector", &["k"]),
    ("public.whole", &[]),
];

/// Rows with ids from so many on; big ones are stored out of line.
fn rows(first: i32) -> String {
    let shapes = [
        "'POINT(1.5 -2.5)', 'SRID=4326;POINT(8.5 47.25)', 'POINT ZM (1 2 3 4)', 'SRID=3857;POLYGON((0 0,0 1,1 1,0 0),(0.1 0.2,0.2 0.3,0.2 0.2,0.1 0.2))',
         'POINT(8.5 47.25)', 'POINT Z (1 2 3)', ARRAY['POINT(1 2)'::geometry, NULL, 'SRID=4326;POINT EMPTY'], ARRAY['POINT(1 2)'::geography],
         'SRID=4326;POINT(1 2)', ARRAY['SRID=4326;POINT(1 2)'::public.spot, NULL], 'BOX(0 0,1 1)', 'BOX3D(0 0 0,1 1 1)',
         ARRAY['BOX(0 0,1 1)'::box2d, NULL], ST_AddBand(ST_MakeEmptyRaster(3, 2, 0.5, -0.5, 1, 1, 0, 0, 4326), '8BUI'::text, 7, 0),
         ROW('POINT(1 2)', '[1,2]'), ARRAY[ROW('LINESTRING(0 0,1 1)', NULL)::public.pair], '{(1,1),(0,0);(2,2),(1,1);NULL}'",
        "'POLYGON EMPTY', 'SRID=4326;POINT EMPTY', 'POINT ZM EMPTY', 'SRID=3857;POLYGON EMPTY', 'GEOMETRYCOLLECTION EMPTY', 'POINT Z EMPTY',
         '{}', '{}', NULL, '{}', NULL, NULL, '{}', NULL, NULL, '{}', '{}'",
        "'SRID=4326;GEOMETRYCOLLECTION M (POINT M (1 2 3),LINESTRING M (0 0 1,1 1 2))', 'SRID=4326;POINT(0 0)', ST_MakePoint('NaN', 'Infinity', '-0', 1e-300), NULL,
         'MULTIPOLYGON(((0 0,0 1,1 1,0 0)))', NULL, ARRAY[['POINT(1 2)'::geometry], ['POINT(3 4)']], '[3:3]={0101000020E6100000000000000000F03F0000000000000040}',
         NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL",
        "'CURVEPOLYGON(CIRCULARSTRING(0 0,4 0,4 4,0 4,0 0))', 'SRID=4326;POINT(0 0)', NULL, NULL, 'LINESTRING(0 0,1 1)', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
         NULL, NULL, NULL, NULL",
    ];
    let vectors = [
        "'[1,2.5,-3]', '[0.1,1e-45,-0]', '[1,-0.5]', '[65504,6e-8]', '{1:1,3:-2.5}/5', '{}/5', ARRAY['[1,2]'::vector, NULL], ARRAY['[1]'::halfvec], ARRAY['{1:1,2:0.1}/3'::sparsevec, NULL]",
        "'[3.4e38]', NULL, '[0]', NULL, '{16000:0.1}/100000', '{5:1}/5', '{}', '[2:2]={[1]}', '{}'",
    ];
    let mut sql = String::new();
    for (i, shape) in (first..).zip(shapes) {
        sql += &format!("INSERT INTO shapes VALUES ({i}, {shape});");
    }
    for (i, vector) in (first..).zip(vectors) {
        sql += &format!("INSERT INTO vectors VALUES ({i}, {vector});");
    }
    let big = first + 100;
    sql + &format!(
        "INSERT INTO shapes (id, pt, g) SELECT {big}, 'SRID=4326;POINT(0 0)', ST_MakeLine(ARRAY(SELECT ST_MakePoint(i, 1.0 / i) FROM generate_series(1, 2000) i));
         INSERT INTO vectors (id, h, s, v) SELECT {big}, '[1]', '{{}}/2', ARRAY(SELECT 1.0 / i FROM generate_series(1, 2000) i)::vector;
         INSERT INTO by_shape SELECT ST_SetSRID(ST_MakePoint({first} + i, -i), 4326), i FROM generate_series(1, 40) i;
         INSERT INTO by_vector SELECT ARRAY[{first} + i, -i]::vector, i FROM generate_series(1, 40) i;
         INSERT INTO whole SELECT i / 2, ST_MakePoint(i / 2, 0), ARRAY[i / 2]::vector FROM generate_series({first}, {first} + 9) i;"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_postgis_and_pgvector() {
    let scene = Scene::bare(LOCKSTEP, "extensions", "", 1).await;
    if !scene.services.catalog.has_extension("postgis").await.unwrap() {
        assert!(std::env::var_os("LOCKSTEP_TEST_EXTENSIONS").is_none(), "the set was made to have them");
        println!("not run: these servers have no PostGIS; scripts/test --postgres extensions");
        return;
    }
    for database in [&scene.source, scene.orders()] {
        let admin = database.superuser().await.unwrap();
        admin
            .batch_execute("CREATE EXTENSION postgis; CREATE EXTENSION postgis_raster; CREATE EXTENSION vector")
            .await
            .unwrap();
        database.execute(SCHEMA).await.unwrap();
    }
    let tables = TABLES.iter().map(|(table, key)| support::TablePair::same(table, key)).collect();
    let registry = scene.services.registry.clone();
    let scene = Scene { tables, ..scene };
    // Small chunks, so that they are cut by keys of these types.
    let scene = scene.configure(|p| {
        let p = TABLES.iter().fold(p, |p, (table, _)| p.table(table));
        p.set("source.snapshot", "chunk_rows = 10").set("registry", &format!("url = \"{registry}\""))
    });
    scene.sql(&rows(1)).await;
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    change(&scene, 1000).await;
    scene.equal(&mut process).await;
    process.terminate(PATIENCE).await.unwrap();

    let scene = scene.configure(|p| p.set("wire", "format = \"avro\""));
    let mut process = scene.start().await;
    change(&scene, 2000).await;
    scene.equal(&mut process).await;
    assert_eq!(text(scene.orders(), "SELECT count(*) > 10 FROM shapes").await, "true");
    process.terminate(PATIENCE).await.unwrap();
}

/// Changes of all kinds; the big values are not sent with them.
async fn change(scene: &Scene, first: i32) {
    scene.sql(&rows(first)).await;
    scene.sql("UPDATE shapes SET zm = 'POINT ZM (9 8 7 6)'; UPDATE vectors SET h = '[0.25]' WHERE id % 2 = 1").await;
    scene.sql("UPDATE shapes SET id = id + 100000 WHERE id % 1000 = 101; UPDATE vectors SET id = -id WHERE id % 1000 = 101").await;
    scene
        .sql("UPDATE by_shape SET g = ST_Translate(g, 0.5, 0) WHERE v % 3 = 0; DELETE FROM by_shape WHERE v % 7 = 0")
        .await;
    scene.sql("UPDATE by_vector SET k = k + '[0.5,0]' WHERE v % 3 = 0; DELETE FROM by_vector WHERE v % 7 = 0").await;
    scene.sql("DELETE FROM shapes WHERE id % 1000 = 4; DELETE FROM vectors WHERE id % 1000 = 2").await;
    scene.sql("UPDATE whole SET g = ST_SetSRID(g, 3857) WHERE id % 2 = 0; DELETE FROM whole WHERE id % 3 = 0").await;
}
