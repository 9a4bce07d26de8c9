CREATE EXTENSION vector;
CREATE TABLE emb (id int PRIMARY KEY, v vector(3) NOT NULL, h halfvec NOT NULL, s sparsevec(5) NOT NULL);
INSERT INTO emb VALUES (1, '[1,2.5,-3]', '[1,-0.5]', '{1:1,3:-2.5}/5');
