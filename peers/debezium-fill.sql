SET ROLE lockstep;
SET search_path = deb;
INSERT INTO kinds (id) VALUES (:first);
INSERT INTO kinds VALUES (:first + 1, -32768, -9223372036854775808, 'NaN', '-Infinity', -0.00001, -0.00001, false,
    E'tab\t nl\n cr\r bs\\ "q" ''s'' 𝄞', 'é', 'ab', '\x00ff5c', '0044-03-15', '0001-01-01 12:00:00', '2024-01-01 00:00:00.123',
    '2024-01-01 00:00:00.123456+00', '23:59:59.999999', '1 year 2 mons -3 days 04:05:06.000007', '00000000-0000-0000-0000-000000000000',
    '{"a" :  1.0, "a": 2}', '{"k": [1e400, null, "\\"], "z": -0.0}', 'happy; "very"', '::1/64', B'10101', '{}',
    '{a,NULL,"NULL","x,\"y\\"}', 'empty', '(1e-300,-0)');
INSERT INTO kinds (id, f8, n, n2, t) SELECT :first + i, 0.1 * i + 1e-15, i / 7.0, i / 3.0, repeat(chr(i), i) FROM generate_series(10, 300) i;
INSERT INTO big SELECT :first + i, i, repeat(md5(i::text), 300), decode(repeat(md5(i::text), 300), 'hex') FROM generate_series(1, 20) i;
INSERT INTO busy SELECT :first + i, 0 FROM generate_series(1, 500) i;
UPDATE kinds SET t = 'changed', n = n + 1, b = NOT b WHERE id % 3 = 0;
UPDATE kinds SET t = NULL, jb = NULL, m = 'ok', ta = NULL WHERE id % 7 = 0;
DELETE FROM kinds WHERE id % 11 = 0;
UPDATE kinds SET id = id + 100000 WHERE id % 13 = 0 AND id < 100000;
UPDATE big SET v = v + 100 WHERE id % 2 = 0;
UPDATE big SET id = id + 100000 WHERE id % 3 = 0 AND id < 100000;
DELETE FROM big WHERE id % 5 = 0;
