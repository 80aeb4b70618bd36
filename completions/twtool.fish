# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_twtool_global_optspecs
    string join \n o/output= json color= 4/ipv4 6/ipv6 h/help V/version
end

function __fish_twtool_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_twtool_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_twtool_using_subcommand
    set -l cmd (__fish_twtool_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c twtool -n "__fish_twtool_needs_command" -s o -l output -d 'Output format' -r -f -a "table\t'Aligned columns for reading'
json\t'One JSON document'
ndjson\t'One JSON record per line'
csv\t'A header line, then one record per line'"
complete -c twtool -n "__fish_twtool_needs_command" -l color -d 'When to use colors; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'Only on a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_needs_command" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_needs_command" -s 4 -l ipv4 -d 'Only IPv4 on the wire, including IPv4-mapped IPv6 sockets'
complete -c twtool -n "__fish_twtool_needs_command" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_needs_command" -s V -l version -d 'Print version'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "list" -d 'List TIME_WAIT sockets with their remaining time'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "summary" -d 'Summarize TIME_WAIT sockets and the closes of the last minute'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "port" -d 'Classify ports and show how this machine uses them'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "bind-test" -d 'Explain why bind() fails on a port, and what helps'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "wait" -d 'Wait until a server can bind a port, then optionally start it'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "capacity" -d 'Show how many more connections each destination can take, and when its ports run out'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "doctor" -d 'Check TCP settings, counters and sockets, and explain each'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "kill" -d 'Remove TIME_WAIT sockets before they expire; never remove a live socket'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "demo" -d 'Run experiments that show why TIME_WAIT exists (private namespaces, no root, no effect on the host)'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "completions" -d 'Print a completion script for a shell'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "man" -d 'Print a manual page, or write all of them'
complete -c twtool -n "__fish_twtool_using_subcommand list" -s o -l output -d 'Output format' -r -f -a "table\t'Aligned columns for reading'
json\t'One JSON document'
ndjson\t'One JSON record per line'
csv\t'A header line, then one record per line'"
complete -c twtool -n "__fish_twtool_using_subcommand list" -l color -d 'When to use colors; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'Only on a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand list" -l port -d 'Local or remote port: a number, range or service name; separate several by commas or repeat' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l local-port -d 'Local port; separate several by commas or repeat' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l remote-port -d 'Remote port; separate several by commas or repeat' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l local -d 'Local address or prefix, like 10.0.0.0/8; repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l remote -d 'Remote address or prefix; repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l class -d 'RFC 6335 class of the local port; repeat for more' -r -f -a "well-known\t'0-1023'
registered\t'1024-49151'
dynamic\t'49152-65535'"
complete -c twtool -n "__fish_twtool_using_subcommand list" -l direction -d 'Which side opened the connection, inferred from listeners and port ranges; repeat for more' -r -f -a "inbound\t'A listener covers the local address and port'
outbound\t'No listener covers the local end, the local port is ephemeral, and the remote port is not'
unknown\t'Neither can be inferred'"
complete -c twtool -n "__fish_twtool_using_subcommand list" -l expires-under -d 'Less remaining time than this, like 500ms, 10s or 1m' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l sort -d 'Sort order of the rows [default: expires; none for ndjson and csv]' -r -f -a "expires\t'By remaining time'
local\t'By local address and port'
remote\t'By remote address and port'
none\t'In the order of the kernel'"
complete -c twtool -n "__fish_twtool_using_subcommand list" -l limit -d 'Show at most this many rows' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l columns -d 'Columns of a table or csv: JSON keys, or local and remote for address:port' -r -f -a "netns\t'Inode number of the network namespace'
netns_name\t'Name of the network namespace, or PID:COMM of its first process'
family\t'ipv4, ipv6 or ipv4-mapped'
state\t'State of the socket: time-wait or fin-wait-2'
local\t'Local address and port'
local_addr\t'Local address'
local_port\t'Local port'
local_class\t'Class of the local port: well-known, registered or dynamic (RFC 6335)'
local_service\t'Name of the local port in /etc/services'
remote\t'Remote address and port'
remote_addr\t'Remote address'
remote_port\t'Remote port'
remote_class\t'Class of the remote port'
remote_service\t'Name of the remote port in /etc/services'
direction\t'Who opened the connection, an inference: inbound, outbound or unknown'
expires_ms\t'Remaining time, in csv in milliseconds'
interface\t'Interface that the socket is bound to'
mark\t'Mark of the socket (SO_MARK), which the kernel reports to CAP_NET_ADMIN alone'
cookie\t'Cookie: the kernel\'s own identity of the socket'"
complete -c twtool -n "__fish_twtool_using_subcommand list" -l source -d 'Kernel interface to read' -r -f -a "auto\t'sock_diag, or procfs if sock_diag is refused'
sock_diag\t'sock_diag only'
procfs\t'/proc/net/tcp and tcp6: slower, times in steps of 10 ms, no cookie, mark or interface'"
complete -c twtool -n "__fish_twtool_using_subcommand list" -l record -d 'Record the data of the kernel and all facts that the output depends on' -r -F
complete -c twtool -n "__fish_twtool_using_subcommand list" -l replay -d 'Read from a recording instead of the kernel' -r -F
complete -c twtool -n "__fish_twtool_using_subcommand list" -l netns -d 'Use this network namespace: a name of `ip netns`, a path, or a process ID; repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand list" -s 4 -l ipv4 -d 'Only IPv4 on the wire, including IPv4-mapped IPv6 sockets'
complete -c twtool -n "__fish_twtool_using_subcommand list" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand list" -l fin-wait-2 -d 'Include orphaned FIN_WAIT_2 sockets, which the kernel also keeps as timewait buckets'
complete -c twtool -n "__fish_twtool_using_subcommand list" -l explain-filter -d 'Show which part of the filter the kernel evaluates and which part twtool evaluates; list nothing'
complete -c twtool -n "__fish_twtool_using_subcommand list" -l reverse -d 'Reverse the sort order'
complete -c twtool -n "__fish_twtool_using_subcommand list" -l no-header -d 'Omit the header line, and the last line of a table'
complete -c twtool -n "__fish_twtool_using_subcommand list" -l count -d 'Print only the number of rows'
complete -c twtool -n "__fish_twtool_using_subcommand list" -s q -l quiet -d 'Print nothing; exit with 0 if any socket matches, 1 if none'
complete -c twtool -n "__fish_twtool_using_subcommand list" -l force -d 'Overwrite an existing file of --record once there is an answer'
complete -c twtool -n "__fish_twtool_using_subcommand list" -l all-netns -d 'Use every network namespace that /proc/PID/ns/net and /run/netns show'
complete -c twtool -n "__fish_twtool_using_subcommand list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand summary" -s o -l output -d 'Output format' -r -f -a "table\t'Aligned columns for reading'
json\t'One JSON document'
ndjson\t'One JSON record per line'
csv\t'A header line, then one record per line'"
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l color -d 'When to use colors; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'Only on a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l by -d 'Groups to count, separated by commas; repeat for more [default: class,direction,local-port,remote-addr,destination]' -r -f -a "local-port\t'Local port'
remote-addr\t'Remote address'
remote-port\t'Remote port'
destination\t'Remote address and port'
class\t'RFC 6335 class of the local port'
direction\t'Which side opened the connection, inferred from listeners and port ranges'
netns\t'Network namespace'"
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l top -d 'Show the N largest entries of each group, and the sum of the others [default: 5 in a table, else 10]' -r
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l record -d 'Record the data of the kernel and all facts that the output depends on' -r -F
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l replay -d 'Read from a recording instead of the kernel' -r -F
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l netns -d 'Use this network namespace: a name of `ip netns`, a path, or a process ID; repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand summary" -s 4 -l ipv4 -d 'Only IPv4 on the wire, including IPv4-mapped IPv6 sockets'
complete -c twtool -n "__fish_twtool_using_subcommand summary" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l force -d 'Overwrite an existing file of --record once there is an answer'
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l all-netns -d 'Use every network namespace that /proc/PID/ns/net and /run/netns show'
complete -c twtool -n "__fish_twtool_using_subcommand summary" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand port" -s o -l output -d 'Output format' -r -f -a "table\t'Aligned columns for reading'
json\t'One JSON document'
ndjson\t'One JSON record per line'
csv\t'A header line, then one record per line'"
complete -c twtool -n "__fish_twtool_using_subcommand port" -l color -d 'When to use colors; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'Only on a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand port" -l netns -d 'Use this network namespace: a name of `ip netns`, a path, or a process ID' -r
complete -c twtool -n "__fish_twtool_using_subcommand port" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand port" -s 4 -l ipv4 -d 'Only IPv4 on the wire, including IPv4-mapped IPv6 sockets'
complete -c twtool -n "__fish_twtool_using_subcommand port" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand port" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -s o -l output -d 'Output format' -r -f -a "table\t'Aligned columns for reading'
json\t'One JSON document'
ndjson\t'One JSON record per line'
csv\t'A header line, then one record per line'"
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -l color -d 'When to use colors; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'Only on a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -l addr -d 'Address to bind; repeat for more [default: 0.0.0.0 and ::]' -r
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -l with -d 'Socket options that the server sets before bind()' -r -f -a "none\t'No option'
reuseaddr\t'SO_REUSEADDR'
reuseport\t'SO_REUSEPORT'
both\t'Both'"
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -l netns -d 'Use this network namespace: a name of `ip netns`, a path, or a process ID' -r
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -s 4 -l ipv4 -d 'Only IPv4 on the wire, including IPv4-mapped IPv6 sockets'
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -l listen -d 'Also call listen(), which can accept a real connection for a moment'
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -l demo -d 'Show how TIME_WAIT blocks the port, in a private network namespace (no root, no effect on the host)'
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand wait" -s o -l output -d 'Output format' -r -f -a "table\t'Aligned columns for reading'
json\t'One JSON document'
ndjson\t'One JSON record per line'
csv\t'A header line, then one record per line'"
complete -c twtool -n "__fish_twtool_using_subcommand wait" -l color -d 'When to use colors; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'Only on a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand wait" -l addr -d 'Address to bind; repeat for more [default: 0.0.0.0 and ::]' -r
complete -c twtool -n "__fish_twtool_using_subcommand wait" -l with -d 'Socket options that the server sets before bind()' -r -f -a "none\t'No option'
reuseaddr\t'SO_REUSEADDR'
reuseport\t'SO_REUSEPORT'
both\t'Both'"
complete -c twtool -n "__fish_twtool_using_subcommand wait" -l timeout -d 'Give up after this time, like 500ms, 10s or 5m; 0 tries once' -r
complete -c twtool -n "__fish_twtool_using_subcommand wait" -l netns -d 'Use this network namespace: a name of `ip netns`, a path, or a process ID' -r
complete -c twtool -n "__fish_twtool_using_subcommand wait" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand wait" -s 4 -l ipv4 -d 'Only IPv4 on the wire, including IPv4-mapped IPv6 sockets'
complete -c twtool -n "__fish_twtool_using_subcommand wait" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand wait" -s q -l quiet -d 'Print nothing; only set the exit code'
complete -c twtool -n "__fish_twtool_using_subcommand wait" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -s o -l output -d 'Output format' -r -f -a "table\t'Aligned columns for reading'
json\t'One JSON document'
ndjson\t'One JSON record per line'
csv\t'A header line, then one record per line'"
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l color -d 'When to use colors; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'Only on a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l to -d 'Only this destination: an address, or an address and port like 192.0.2.1:443 or [2001:db8::1]:443' -r
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l from -d 'Only from this local address' -r
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l top -d 'Show the N destinations with the fewest free ports [default: 10 in a table, else all]' -r
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l min-free -d 'Exit with 1 if a destination has fewer free ports than this number, or this share of the pool, like 10%' -r
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l netns -d 'Use this network namespace: a name of `ip netns`, a path, or a process ID' -r
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -s 4 -l ipv4 -d 'Only IPv4 on the wire, including IPv4-mapped IPv6 sockets'
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l no-probe -d 'Do not test which ports are explicitly bound; only read the socket list'
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -s o -l output -d 'Output format' -r -f -a "table\t'Aligned columns for reading'
json\t'One JSON document'
ndjson\t'One JSON record per line'
csv\t'A header line, then one record per line'"
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -l color -d 'When to use colors; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'Only on a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -l close-wait-after -d 'Report a socket in CLOSE_WAIT as leaked after this time since the last ACK of the peer' -r
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -l netns -d 'Use this network namespace: a name of `ip netns`, a path, or a process ID' -r
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -s 4 -l ipv4 -d 'Only IPv4 on the wire, including IPv4-mapped IPv6 sockets'
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -s v -l verbose -d 'Explain every check: what the setting does, what it does not do, and the sources'
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -s o -l output -d 'Output format' -r -f -a "table\t'Aligned columns for reading'
json\t'One JSON document'
ndjson\t'One JSON record per line'
csv\t'A header line, then one record per line'"
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l color -d 'When to use colors; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'Only on a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l port -d 'Local or remote port: a number, range or service name; separate several by commas or repeat' -r
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l local-port -d 'Local port; separate several by commas or repeat' -r
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l remote-port -d 'Remote port; separate several by commas or repeat' -r
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l local -d 'Local address or prefix, like 10.0.0.0/8; repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l remote -d 'Remote address or prefix; repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l class -d 'RFC 6335 class of the local port; repeat for more' -r -f -a "well-known\t'0-1023'
registered\t'1024-49151'
dynamic\t'49152-65535'"
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l direction -d 'Which side opened the connection, inferred from listeners and port ranges; repeat for more' -r -f -a "inbound\t'A listener covers the local address and port'
outbound\t'No listener covers the local end, the local port is ephemeral, and the remote port is not'
unknown\t'Neither can be inferred'"
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l expires-under -d 'Less remaining time than this, like 500ms, 10s or 1m' -r
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l netns -d 'Use this network namespace: a name of `ip netns`, a path, or a process ID' -r
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -s 4 -l ipv4 -d 'Only IPv4 on the wire, including IPv4-mapped IPv6 sockets'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l fin-wait-2 -d 'Include orphaned FIN_WAIT_2 sockets, which the kernel also keeps as timewait buckets'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l orphans -d 'Include closing sockets that no process has (FIN_WAIT_1, FIN_WAIT_2, CLOSING, LAST_ACK)'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l all -d 'Allow running without a filter'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -s y -l yes -d 'Remove without asking'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -s n -l dry-run -d 'Show what would be removed without removing it'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand demo" -s o -l output -d 'Output format' -r -f -a "table\t'Aligned columns for reading'
json\t'One JSON document'
ndjson\t'One JSON record per line'
csv\t'A header line, then one record per line'"
complete -c twtool -n "__fish_twtool_using_subcommand demo" -l color -d 'When to use colors; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'Only on a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand demo" -l pcap -d 'Also write the segments to a capture file for Wireshark and tshark' -r -F
complete -c twtool -n "__fish_twtool_using_subcommand demo" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand demo" -s 4 -l ipv4 -d 'Only IPv4 on the wire, including IPv4-mapped IPv6 sockets'
complete -c twtool -n "__fish_twtool_using_subcommand demo" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand demo" -l step -d 'Wait for the Enter key after each step; the experiment itself is over before the first step is shown'
complete -c twtool -n "__fish_twtool_using_subcommand demo" -l force -d 'Overwrite an existing file of --pcap'
complete -c twtool -n "__fish_twtool_using_subcommand demo" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand completions" -s o -l output -d 'Output format' -r -f -a "table\t'Aligned columns for reading'
json\t'One JSON document'
ndjson\t'One JSON record per line'
csv\t'A header line, then one record per line'"
complete -c twtool -n "__fish_twtool_using_subcommand completions" -l color -d 'When to use colors; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'Only on a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand completions" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand completions" -s 4 -l ipv4 -d 'Only IPv4 on the wire, including IPv4-mapped IPv6 sockets'
complete -c twtool -n "__fish_twtool_using_subcommand completions" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand completions" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand man" -l dir -d 'Write the page of twtool and of each command to this folder; create the folder if necessary' -r -F
complete -c twtool -n "__fish_twtool_using_subcommand man" -s o -l output -d 'Output format' -r -f -a "table\t'Aligned columns for reading'
json\t'One JSON document'
ndjson\t'One JSON record per line'
csv\t'A header line, then one record per line'"
complete -c twtool -n "__fish_twtool_using_subcommand man" -l color -d 'When to use colors; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'Only on a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand man" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand man" -s 4 -l ipv4 -d 'Only IPv4 on the wire, including IPv4-mapped IPv6 sockets'
complete -c twtool -n "__fish_twtool_using_subcommand man" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand man" -s h -l help -d 'Print help (see more with \'--help\')'
