#!/usr/bin/env bash
# docker/postgres-init.sh: the role and the access rules that scripts/services makes, for the servers of docker-compose.yml.
#
# The postgres image runs it once, on an empty data directory, after it has made the database POSTGRES_DB. Its own pg_hba.conf
# lets clients from outside the container in with a password, but not for replication; the word "all" does not cover that.
set -euo pipefail

psql -X -q -v ON_ERROR_STOP=1 -v "database=$POSTGRES_DB" -U "$POSTGRES_USER" -d "$POSTGRES_DB" <<'SQL'
CREATE ROLE lockstep LOGIN REPLICATION PASSWORD 'lockstep';
ALTER DATABASE :"database" OWNER TO lockstep;
SQL

echo 'host replication all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
