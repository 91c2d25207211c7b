import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.File;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Map;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.header.Headers;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * Prints what livebridge publishes. With kafka-clients, jackson-databind and a logger for SLF4J in libs/:
 * java -cp 'libs/*' Consumer.java ../contract/asyncapi.json BROKERS
 */
public class Consumer {
    public static void main(String[] arguments) throws Exception {
        JsonNode contract = new ObjectMapper().readTree(new File(arguments[0]));
        var topics = new ArrayList<String>();
        contract.get("channels").forEach(channel -> topics.add(channel.get("address").asText()));

        var out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", arguments[1],
            "group.id", "example-java",
            "auto.offset.reset", "earliest",
            "isolation.level", "read_committed");
        var text = new StringDeserializer();
        try (var consumer = new KafkaConsumer<>(settings, text, text)) {
            consumer.subscribe(topics);
            while (true) {
                for (var record : consumer.poll(Duration.ofSeconds(1))) {
                    Headers headers = record.headers();
                    out.println(String.join("\t", header(headers, "ce_id"), header(headers, "ce_type"),
                        header(headers, "ce_subject"), record.value()));
                }
            }
        }
    }

    private static String header(Headers headers, String name) {
        var header = headers.lastHeader(name);
        return header == null ? "" : new String(header.value(), StandardCharsets.UTF_8);
    }
}
