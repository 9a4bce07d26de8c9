# shellcheck shell=bash
# How the Kafka broker of a set is fetched from Maven Central, formatted, configured, started and asked whether it is there.
#
# Sourced by scripts/services, which owns the set (SET, STATE, CACHE), the processes and the locks. Only functions and constants
# here: sourcing it does nothing.

KAFKA_VERSION=4.1.1
KAFKA_SCALA=2.13
LOG4J_VERSION=2.25.1
MAVEN_PLUGIN=org.apache.maven.plugins:maven-dependency-plugin:3.8.1
# Enough for the tests, and four sets fit on a small machine.
KAFKA_HEAP=512m
# Of each of three.
KAFKA_CLUSTER_HEAP=256m

kafka_dir() {
    printf '%s/kafka-%s' "$CACHE" "$KAFKA_VERSION"
}

fetch_kafka() {
    download "$(kafka_dir)" install_kafka
}

# install_kafka DIR
install_kafka() {
    has mvn || die "maven is missing" "scripts/setup"
    kafka_pom >"$1/pom.xml"
    JAVA_HOME=$(dirname -- "$(dirname -- "$(find_java "$CACHE" "${SET[user]}")")") mvn -B -q -f "$1/pom.xml" \
        "$MAVEN_PLUGIN:copy-dependencies" -DincludeScope=runtime "-DoutputDirectory=$1/libs"
    [[ -n $(compgen -G "$1/libs/kafka_$KAFKA_SCALA-$KAFKA_VERSION.jar") ]]
}

kafka_pom() {
    printf '%s\n' \
        '<project><modelVersion>4.0.0</modelVersion>' \
        '<groupId>lockstep</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>' \
        '<dependencies>' \
        "$(pom_dependency org.apache.kafka "kafka_$KAFKA_SCALA" "$KAFKA_VERSION")" \
        "$(pom_dependency org.apache.kafka kafka-tools "$KAFKA_VERSION")" \
        "$(pom_dependency org.apache.logging.log4j log4j-core "$LOG4J_VERSION")" \
        "$(pom_dependency org.apache.logging.log4j log4j-slf4j-impl "$LOG4J_VERSION")" \
        '</dependencies></project>'
}

pom_dependency() {
    printf '<dependency><groupId>%s</groupId><artifactId>%s</artifactId><version>%s</version></dependency>' "$@"
}

# kafka_brokers: HOST:PORT of each, with commas between them.
kafka_brokers() {
    local all=127.0.0.1:${SET[port_kafka]}
    ((${SET[brokers]:-1} == 1)) || all+=,127.0.0.1:${SET[port_kafka2]},127.0.0.1:${SET[port_kafka3]}
    printf '%s' "$all"
}

# start_kafka NAME
start_kafka() {
    local name=$1 dir=${SET[data]}/$1 java heap=$KAFKA_HEAP
    ((${SET[brokers]:-1} == 1)) || heap=$KAFKA_CLUSTER_HEAP
    java=$(find_java "$CACHE" "${SET[user]}") || die "no Java $JAVA_VERSION_MIN or newer" "scripts/setup"
    kafka_properties "$name" | write_as_services "$dir/server.properties"
    kafka_log4j | write_as_services "$dir/log4j2.properties"
    check_port_free "$name"
    check_port_free "${name/kafka/controller}"
    [[ -e $dir/formatted ]] || format_kafka "$name" "$java"
    # The broker gets a session of its own, so that it outlives this shell and its terminal.
    # shellcheck disable=SC2016 # the inner shell expands these
    unlocked as_services bash -c 'pid=$1 log=$2; shift 2; setsid "$@" >>"$log" 2>&1 & echo $! >"$pid"' start-kafka \
        "$dir/kafka.pid" "$(log_of "$name")" \
        "$java" "-Xmx${LOCKSTEP_KAFKA_HEAP:-$heap}" -XX:+ExitOnOutOfMemoryError -Djava.awt.headless=true \
        "-Dlog4j2.configurationFile=$dir/log4j2.properties" -cp "$(kafka_dir)/libs/*" kafka.Kafka "$dir/server.properties" \
        </dev/null >/dev/null 2>&1
    wait_until "$START_SECONDS_MAX" kafka_decided "$name" || true
    kafka_answers "$name" || die_with_log "$name"
}

kafka_decided() {
    kafka_answers "$1" || gone "$1"
}

# format_kafka NAME JAVA: gives the empty log directory its identity. A cluster id is 16 bytes in base64 without "/", "+" or padding.
format_kafka() {
    local dir=${SET[data]}/$1 id=${SET[cluster]:-} alone=(--standalone)
    [[ -n $id ]] || id=$(openssl rand -base64 16 | tr '+/' '_' | cut -c 1-22)
    ((${SET[brokers]:-1} == 1)) || alone=()
    as_services rm -rf -- "$dir/data"
    logged "$1" "$2" -Xmx128m "-Dlog4j2.configurationFile=$dir/log4j2.properties" -cp "$(kafka_dir)/libs/*" \
        kafka.tools.StorageTool format "${alone[@]}" -t "$id" -c "$dir/server.properties"
    as_services touch "$dir/formatted"
}

# kafka_properties NAME: a node that is broker and controller. Two settings are not the defaults, to make tests faster:
# - the inner topics have 4 partitions instead of 50, which with one broker only make recovery and the first transaction slower
# - after a crash the controller takes the same broker back only once its old session is over; 3 s instead of 9, because a
#   test that kills the broker waits for just that
kafka_properties() {
    local node=${1#kafka} kafka=127.0.0.1:${SET[port_$1]} controller=127.0.0.1:${SET[port_${1/kafka/controller}]} replicas=1 isr=1
    local quorum=controller.quorum.bootstrap.servers=127.0.0.1:${SET[port_controller]}
    if ((${SET[brokers]:-1} == 3)); then
        replicas=3 isr=2
        quorum=controller.quorum.voters=1@127.0.0.1:${SET[port_controller]},2@127.0.0.1:${SET[port_controller2]}
        quorum+=,3@127.0.0.1:${SET[port_controller3]}
    fi
    printf '%s\n' \
        "# Made by scripts/services at every start." \
        "process.roles=broker,controller" \
        "node.id=${node:-1}" \
        "listeners=PLAINTEXT://$kafka,CONTROLLER://$controller" \
        "advertised.listeners=PLAINTEXT://$kafka" \
        "controller.listener.names=CONTROLLER" \
        "$quorum" \
        "offsets.topic.num.partitions=4" \
        "offsets.topic.replication.factor=$replicas" \
        "transaction.state.log.num.partitions=4" \
        "transaction.state.log.replication.factor=$replicas" \
        "transaction.state.log.min.isr=$isr" \
        "share.coordinator.state.topic.num.partitions=1" \
        "share.coordinator.state.topic.replication.factor=$replicas" \
        "share.coordinator.state.topic.min.isr=$isr" \
        "group.initial.rebalance.delay.ms=0" \
        "auto.create.topics.enable=false" \
        "broker.heartbeat.interval.ms=500" \
        "broker.session.timeout.ms=3000" \
        "log.dirs=${SET[data]}/$1/data"
}

kafka_log4j() {
    printf '%s\n' \
        "# Made by scripts/services: warnings, and the lines that say when the broker came and went." \
        "rootLogger.level = warn" \
        "rootLogger.appenderRef.out.ref = out" \
        "appender.out.type = Console" \
        "appender.out.name = out" \
        "appender.out.layout.type = PatternLayout" \
        "appender.out.layout.pattern = %d %p %c{1}: %m%n" \
        "logger.server.name = kafka.server.KafkaRaftServer" \
        "logger.server.level = info"
}

# kafka_answers NAME: sends one metadata request and sees whether the answer names a broker. An open port says less: the broker may
# still be loading. In bash, because a JVM or even kcat per try would cost more than the start itself.
kafka_answers() {
    local answer
    # length 14, api 3 (metadata), version 0, correlation 1, no client id, no topics; the answer is length, correlation, brokers
    answer=$(exec 2>/dev/null 7<>"/dev/tcp/127.0.0.1/${SET[port_$1]}" &&
        printf '\0\0\0\16\0\3\0\0\0\0\0\1\377\377\0\0\0\0' >&7 &&
        timeout 2 head -c 12 <&7 | od -An -v -tx1 | tr -d ' \n')
    [[ ${answer:8} == 000000010000000[1-3] ]]
}
