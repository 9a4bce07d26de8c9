INSERT INTO emb VALUES (2, '[1,2.5,-3]', '[1,-0.5]', '{1:1,3:-2.5}/5');
UPDATE emb SET v = '[0,0,0]' WHERE id = 2;
DELETE FROM emb WHERE id = 1;
