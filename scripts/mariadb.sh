# shellcheck shell=bash
# How the MariaDB of a set is made, configured and started. The server is Debian's (mariadb-server-core, which scripts/setup
# installs): npm has none. Only sets that asked for it have one.
#
# Sourced by scripts/services, which owns the set (SET, STATE, CACHE), the processes and the locks. Only functions and constants
# here: sourcing it does nothing.

mariadb_server() {
    PATH=$PATH:/usr/sbin command -v mariadbd
}

# fetch_mariadb: Debian's package can't be fetched beside the system.
fetch_mariadb() {
    mariadb_server >/dev/null || die "mariadbd is missing" "scripts/setup"
}

mariadb_version() {
    local text
    text=$("$(mariadb_server)" --no-defaults --version 2>/dev/null) || true
    [[ $text =~ ([0-9]+\.[0-9]+\.[0-9]+)-MariaDB ]] && printf 'MariaDB %s' "${BASH_REMATCH[1]}" || printf 'MariaDB'
}

start_mariadb() {
    local data=${SET[data]}/mariadb
    [[ -d $data ]] || create_mariadb
    mariadb_conf | write_as_services "$data/lockstep.cnf"
    check_port_free mariadb
    # shellcheck disable=SC2016 # the inner shell expands these
    unlocked as_services bash -c 'log=$1; shift; setsid "$@" >>"$log" 2>&1 &' start-mariadb \
        "$(log_of mariadb)" "$(mariadb_server)" "--defaults-file=$data/lockstep.cnf" </dev/null >/dev/null 2>&1
    wait_until "$START_SECONDS_MAX" mariadb_answers || die_with_log mariadb
}

# create_mariadb: the data directory with its roles, before any client can see it.
create_mariadb() {
    local new=${SET[data]}/new.mariadb
    as_services rm -rf -- "$new"
    as_services mkdir -p -- "$new"
    logged mariadb mariadb-install-db --no-defaults "--datadir=$new/data" --auth-root-authentication-method=normal --skip-test-db
    write_as_services "$new/server.crt" <"$STATE/tls/server.crt"
    (umask 077 && write_as_services "$new/server.key" <"$STATE/tls/server.key")
    mariadb_sql | write_as_services "$new/init.sql"
    as_services mv -T -- "$new" "${SET[data]}/mariadb"
}

# mariadb_sql: run at every start. Like Postgres' role, lockstep may make databases of its own and is no superuser.
mariadb_sql() {
    printf '%s\n' \
        "CREATE USER IF NOT EXISTS 'lockstep'@'127.0.0.1' IDENTIFIED BY 'lockstep';" \
        "ALTER USER 'root'@'127.0.0.1' IDENTIFIED BY 'root';" \
        "GRANT ALL ON \`it\\_%\`.* TO 'lockstep'@'127.0.0.1';"
}

# mariadb_conf: what differs from the defaults. Whatever is durable by default stays so: crash tests rely on it.
mariadb_conf() {
    local data=${SET[data]}/mariadb
    printf '%s\n' \
        "# Made by scripts/services at every start." \
        "[mariadbd]" \
        "datadir = $data/data" \
        "pid-file = $data/postmaster.pid" \
        "socket = ${SET[run]}/mariadb.sock" \
        "bind-address = 127.0.0.1" \
        "port = ${SET[port_mariadb]}" \
        "skip-name-resolve = on" \
        "init-file = $data/init.sql" \
        "ssl-cert = $data/server.crt" \
        "ssl-key = $data/server.key" \
        "innodb-buffer-pool-size = 128M" \
        "innodb-log-file-size = 128M" \
        "max-connections = 200"
}

mariadb_answers() {
    running mariadb && (exec 2>/dev/null 7<>"/dev/tcp/127.0.0.1/${SET[port_mariadb]}")
}
