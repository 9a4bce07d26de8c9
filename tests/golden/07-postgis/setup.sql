CREATE EXTENSION postgis;
DELETE FROM spatial_ref_sys WHERE srid <> 4326;
CREATE TABLE places (id int PRIMARY KEY, g geometry, pt geometry(Point,4326) NOT NULL DEFAULT 'SRID=4326;POINT(1 2)', zm geometry(PointZM), gg geography, gp geography(Point,4326), nn geography NOT NULL DEFAULT 'POINT(0 0)', g0 geometry, ga geometry[], gga geography[], ba box[], b2 box2d, b3 box3d);
INSERT INTO places VALUES (1, 'POINT(1.5 -2.5)', 'SRID=4326;POINT(8.5 47.25)', 'POINT ZM (1 2 3 4)', 'POLYGON((0 0,0 1,1 1,0 0))', 'POINT(8.5 47.25)', 'POINT(3 4)', NULL, ARRAY['POINT(1 2)'::geometry, NULL, 'POINT EMPTY'], ARRAY['POINT(1 2)'::geography], '{(1,1),(0,0);(2,2),(1,1)}', 'BOX(0 0,1 1)', 'BOX3D(0 0 0,1 1 1)');
