// What the tests do to an HDFS cluster, on one JVM that stays: commands come in as lines, with tabs between their
// words, and each is answered by a line, `ok TEXT` or `error TEXT`.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FSDataOutputStream;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.SafeModeAction;
import org.apache.hadoop.fs.permission.FsPermission;
import org.apache.hadoop.ha.HAServiceProtocol;
import org.apache.hadoop.ha.HAServiceProtocol.RequestSource;
import org.apache.hadoop.ha.HAServiceProtocol.StateChangeRequestInfo;
import org.apache.hadoop.hdfs.DistributedFileSystem;
import org.apache.hadoop.hdfs.protocol.HdfsConstants.DatanodeReportType;
import org.apache.hadoop.hdfs.tools.NNHAServiceTarget;
import org.apache.hadoop.security.UserGroupInformation;

public class Shell {
    static final Configuration CONF = new Configuration();
    /** Files that are being written, by path. */
    static final Map<String, FSDataOutputStream> OPEN = new HashMap<>();

    static DistributedFileSystem dfs;

    public static void main(String[] args) throws Exception {
        CONF.addResource("hdfs-site.xml");
        if (args.length == 2) {
            UserGroupInformation.setConfiguration(CONF);
            UserGroupInformation.loginUserFromKeytab(args[0], args[1]);
        }
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        java.io.PrintStream out = new java.io.PrintStream(System.out, true, "UTF-8");
        System.setOut(System.err);
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String answer;
            try {
                answer = "ok " + run(line.split("\t", -1));
            } catch (Throwable problem) {
                problem.printStackTrace();
                answer = "error " + problem;
            }
            out.println(answer.replace('\n', ' '));
        }
    }

    static DistributedFileSystem dfs() throws Exception {
        if (dfs == null) {
            dfs = (DistributedFileSystem) new Path("/").getFileSystem(CONF);
        }
        return dfs;
    }

    /** A path as it is written: the constructor of one string would take a colon for a scheme. */
    static Path path(String text) {
        return new Path("hdfs", dfs.getUri().getAuthority(), text);
    }

    static String run(String[] words) throws Exception {
        switch (words[0]) {
            case "active": // NUMBER: this NameNode becomes the active one
            case "standby":
                return transition(words[0].equals("active"), "nn" + words[1]);
            default:
        }
        dfs();
        Path path = words.length > 1 ? path(words[1]) : null; // but for tools, the first word is a path
        switch (words[0]) {
            case "put": // PATH FILE: writes a file, also over one that is there
                try (FSDataOutputStream stream = dfs.create(path, true)) {
                    stream.write(Files.readAllBytes(Paths.get(words[2])));
                }
                return id(path);
            case "puts": // DIR LIST: writes what the lines of a file name, PATH and FILE with a tab between them
                dfs.mkdirs(path);
                return puts(Files.readAllLines(Paths.get(words[2])));
            case "write": // PATH FILE: writes, and leaves the file open
                OPEN.put(words[1], dfs.create(path, true));
                return more(words);
            case "append": // PATH FILE: appends, and leaves the file open
                OPEN.put(words[1], dfs.append(path));
                return more(words);
            case "close":
                OPEN.remove(words[1]).close();
                return id(path);
            case "many": // DIR COUNT: so many files, a thousand in a directory; the first 2,000 hold their numbers
                return many(words[1], Integer.parseInt(words[2]));
            case "delete":
                return String.valueOf(dfs.delete(path, true));
            case "rename":
                return String.valueOf(dfs.rename(path, path(words[2])));
            case "mkdir":
                return String.valueOf(dfs.mkdirs(path));
            case "chmod":
                dfs.setPermission(path, new FsPermission(words[2]));
                return "";
            case "times": // PATH MILLISECONDS
                dfs.setTimes(path, Long.parseLong(words[2]), -1);
                return "";
            case "safe": // whether the NameNode is in SafeMode
                return String.valueOf(dfs.setSafeMode(SafeModeAction.GET));
            case "live": // how many DataNodes live
                return String.valueOf(dfs.getDataNodeStats(DatanodeReportType.LIVE).length);
            case "blocks": // PATH: which DataNodes have each of its blocks, by their ports
                StringBuilder ports = new StringBuilder();
                long length = dfs.getFileStatus(path).getLen();
                for (var location : dfs.getFileBlockLocations(path, 0, length)) {
                    for (String name : location.getNames()) {
                        ports.append(name.substring(name.indexOf(':') + 1)).append(' ');
                    }
                }
                return ports.toString();
            default:
                throw new IllegalArgumentException(words[0]);
        }
    }

    static String id(Path path) throws Exception {
        return String.valueOf(dfs.getClient().getFileInfo(path.toUri().getPath()).getFileId());
    }

    static String more(String[] words) throws Exception {
        FSDataOutputStream stream = OPEN.get(words[1]);
        stream.write(Files.readAllBytes(Paths.get(words[2])));
        stream.hflush();
        return "";
    }

    interface Task {
        void run() throws Exception;
    }

    /** Does all, eight at a time. */
    static void together(Iterable<Task> tasks) throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(8);
        AtomicReference<Exception> failed = new AtomicReference<>();
        for (Task task : tasks) {
            threads.submit(() -> {
                try {
                    task.run();
                } catch (Exception problem) {
                    failed.set(problem);
                }
            });
        }
        threads.shutdown();
        threads.awaitTermination(10, TimeUnit.MINUTES);
        if (failed.get() != null) {
            throw failed.get();
        }
    }

    static String puts(List<String> lines) throws Exception {
        List<Task> tasks = new ArrayList<>();
        for (String line : lines) {
            String[] words = line.split("\t");
            tasks.add(() -> {
                try (FSDataOutputStream stream = dfs.create(path(words[0]), true)) {
                    stream.write(Files.readAllBytes(Paths.get(words[1])));
                }
            });
        }
        together(tasks);
        return String.valueOf(tasks.size());
    }

    static String many(String dir, int count) throws Exception {
        List<Task> tasks = new ArrayList<>();
        for (int number = 0; number < count; number++) {
            final int file = number;
            tasks.add(() -> {
                Path path = path(String.format("%s/%03d/%06d", dir, file / 1000, file));
                try (FSDataOutputStream stream = dfs.create(path, true, 4096, (short) 1, 1048576)) {
                    if (file < 2000) { // the others are empty: no DataNode has to write them
                        stream.write(String.valueOf(file).getBytes(StandardCharsets.UTF_8));
                    }
                }
            });
        }
        together(tasks);
        return String.valueOf(count);
    }

    static String transition(boolean isActive, String name) throws Exception {
        HAServiceProtocol namenode = new NNHAServiceTarget(CONF, CONF.get("dfs.nameservices"), name).getProxy(CONF, 3000);
        StateChangeRequestInfo by = new StateChangeRequestInfo(RequestSource.REQUEST_BY_USER);
        if (isActive) {
            namenode.transitionToActive(by);
        } else {
            namenode.transitionToStandby(by);
        }
        return "";
    }
}
