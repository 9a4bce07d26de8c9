# shellcheck shell=bash
# How the schema registry of a set is fetched from Maven Central, started and asked whether it is there: Apicurio, which speaks
# Confluent's API under /apis/ccompat/v7. It keeps everything in memory; only sets that asked for it have one.
#
# Sourced by scripts/services, which owns the set (SET, STATE, CACHE), the processes and the locks. Only functions and constants
# here: sourcing it does nothing.

REGISTRY_VERSION=3.3.3
REGISTRY_SHA256=8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63
REGISTRY_PATH=/apis/ccompat/v7
# Its class files are of Java 21.
REGISTRY_JAVA_MIN=21
# 220 MB resident with it, 300 without a limit.
REGISTRY_HEAP=256m

registry_dir() {
    printf '%s/registry-%s' "$CACHE" "$REGISTRY_VERSION"
}

fetch_registry() {
    download "$(registry_dir)" install_registry
}

# install_registry DIR
install_registry() {
    local archive=$1.tar.gz/apicurio-registry-app-$REGISTRY_VERSION-all.tar.gz
    has mvn || die "maven is missing" "scripts/setup"
    JAVA_HOME=$(dirname -- "$(dirname -- "$(find_java "$CACHE" "${SET[user]}")")") mvn -B -q "$MAVEN_PLUGIN:copy" \
        "-Dartifact=io.apicurio:apicurio-registry-app:$REGISTRY_VERSION:tar.gz:all" "-DoutputDirectory=$1.tar.gz"
    sha256sum --check --quiet <<<"$REGISTRY_SHA256  $archive" || {
        rm -rf -- "$1.tar.gz"
        die "the registry's archive is not the one that was tried: its SHA-256 is another"
    }
    tar -xzf "$archive" -C "$1" --no-same-owner
    rm -rf -- "$1.tar.gz"
    [[ -f $1/quarkus-run.jar ]]
}

start_registry() {
    local dir=${SET[data]}/registry java
    java=$(find_java "$CACHE" "${SET[user]}" "$REGISTRY_JAVA_MIN") ||
        die "no Java $REGISTRY_JAVA_MIN or newer for the registry" "scripts/setup"
    as_services mkdir -p -- "$dir"
    check_port_free registry
    # Its management interface would listen on port 9000 of every address. The last argument is there for pid_of.
    # shellcheck disable=SC2016 # the inner shell expands these
    unlocked as_services bash -c 'cd "$1"; pid=$2 log=$3; shift 3; setsid "$@" >>"$log" 2>&1 & echo $! >"$pid"' start-registry \
        "$(registry_dir)" "$dir/registry.pid" "$(log_of registry)" \
        "$java" "-Xmx$REGISTRY_HEAP" -XX:TieredStopAtLevel=1 -XX:+ExitOnOutOfMemoryError -Djava.awt.headless=true \
        -Dquarkus.http.host=127.0.0.1 "-Dquarkus.http.port=${SET[port_registry]}" \
        -Dquarkus.management.host=127.0.0.1 -Dquarkus.management.port=0 \
        -Dquarkus.http.access-log.enabled=false -Dquarkus.log.console.level=WARN -Dquarkus.otel.enabled=false \
        -jar quarkus-run.jar "$dir" </dev/null >/dev/null 2>&1
    wait_until "$START_SECONDS_MAX" registry_decided || true
    registry_answers || die_with_log registry
}

registry_decided() {
    registry_answers || gone registry
}

# registry_answers: an open port says less than an answer, and curl is not on every machine.
registry_answers() {
    local answer
    answer=$(exec 2>/dev/null 7<>"/dev/tcp/127.0.0.1/${SET[port_registry]}" &&
        printf 'GET %s/subjects HTTP/1.0\r\n\r\n' "$REGISTRY_PATH" >&7 &&
        timeout 5 head -c 12 <&7)
    [[ $answer == HTTP/1.?\ 200 ]]
}
