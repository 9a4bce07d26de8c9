import java.time.Duration;
import java.util.List;
import java.util.Properties;
import java.util.stream.Collectors;
import org.apache.avro.generic.GenericRecord;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;

/**
 * A plain consumer of Avro records: reads every record of some topics by the schemas that the registry has for the ids in them,
 * and prints for each topic how many records and tombstones there were. Kafka's console consumer hands the text "null" to the
 * deserializer where a tombstone has no value, so it can't do this.
 *
 * Arguments: the broker, the topics with commas between them, then NAME=VALUE for the deserializer.
 */
public class ReadAll {
    public static void main(String[] arguments) {
        Properties properties = new Properties();
        properties.put(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        properties.put(ConsumerConfig.KEY_DESERIALIZER_CLASS_CONFIG, "io.apicurio.registry.serde.avro.AvroKafkaDeserializer");
        properties.put(ConsumerConfig.VALUE_DESERIALIZER_CLASS_CONFIG, "io.apicurio.registry.serde.avro.AvroKafkaDeserializer");
        for (String setting : List.of(arguments).subList(2, arguments.length)) {
            String[] parts = setting.split("=", 2);
            properties.put(parts[0], parts[1]);
        }
        try (KafkaConsumer<GenericRecord, GenericRecord> consumer = new KafkaConsumer<>(properties)) {
            for (String topic : arguments[1].split(",")) {
                read(consumer, topic);
            }
        }
    }

    static void read(KafkaConsumer<GenericRecord, GenericRecord> consumer, String topic) {
        List<TopicPartition> partitions = consumer.partitionsFor(topic).stream()
            .map(info -> new TopicPartition(topic, info.partition())).collect(Collectors.toList());
        consumer.assign(partitions);
        consumer.seekToBeginning(partitions);
        var ends = consumer.endOffsets(partitions);
        long records = 0, tombstones = 0;
        while (partitions.stream().anyMatch(one -> consumer.position(one) < ends.get(one))) {
            for (ConsumerRecord<GenericRecord, GenericRecord> record : consumer.poll(Duration.ofSeconds(1))) {
                records += 1;
                if (record.value() == null) {
                    tombstones += 1;
                } else if (record.value().get("op") == null) {
                    throw new IllegalStateException("no operation: " + record);
                }
            }
        }
        System.out.println(topic + ": " + records + " records, of them " + tombstones + " tombstones");
    }
}
