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

complete -c twtool -n "__fish_twtool_needs_command" -s o -l output -d 'How to print the answer' -r -f -a "table\t'Aligned columns, for eyes'
json\t'One JSON document'
ndjson\t'A JSON record a line'
csv\t'A header line, then a record a line'"
complete -c twtool -n "__fish_twtool_needs_command" -l color -d 'When to colour; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_needs_command" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_needs_command" -s 4 -l ipv4 -d 'Only IPv4 on the wire, IPv4-mapped sockets too'
complete -c twtool -n "__fish_twtool_needs_command" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_needs_command" -s V -l version -d 'Print version'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "list" -d 'List TIME_WAIT sockets with their remaining time'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "summary" -d 'Say on one screen how many there are, of what, and the closes of the last minute'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "port" -d 'Classify ports, and say what this machine makes of them'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "bind-test" -d 'Say why bind() fails on a port, and what would help'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "wait" -d 'Wait until a server could bind a port, and perhaps start it'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "capacity" -d 'Say how many further connects a destination takes, and when it runs out of ports'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "doctor" -d 'Say whether settings, counters and sockets are in order, and what each of them means'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "kill" -d 'Remove TIME_WAIT sockets before their time; never a live one'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "demo" -d 'Show on this kernel why TIME_WAIT exists, in private namespaces (no root, host untouched)'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "completions" -d 'Print a completion script for a shell'
complete -c twtool -n "__fish_twtool_needs_command" -f -a "man" -d 'Print the manual page'
complete -c twtool -n "__fish_twtool_using_subcommand list" -s o -l output -d 'How to print the answer' -r -f -a "table\t'Aligned columns, for eyes'
json\t'One JSON document'
ndjson\t'A JSON record a line'
csv\t'A header line, then a record a line'"
complete -c twtool -n "__fish_twtool_using_subcommand list" -l color -d 'When to colour; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand list" -l port -d 'Local or remote port: number, range or service name; 80,443 or repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l local-port -d 'Local port; 80,443 or repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l remote-port -d 'Remote port; 80,443 or repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l local -d 'Local address or prefix, like 10.0.0.0/8; repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l remote -d 'Remote address or prefix; repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l class -d 'RFC 6335 class of the local port; repeat for more' -r -f -a "well-known\t'0-1023'
registered\t'1024-49151'
dynamic\t'49152-65535'"
complete -c twtool -n "__fish_twtool_using_subcommand list" -l direction -d 'Who connected, as inferred from listeners and port ranges; repeat for more' -r -f -a "inbound\t'A listener covers the local end'
outbound\t'None does, the local port is ephemeral and the remote one is not'
unknown\t'Neither can be said'"
complete -c twtool -n "__fish_twtool_using_subcommand list" -l expires-under -d 'Less remaining time than this: 500ms, 10s, 1m' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l sort -d 'Order of the rows [default: expires; none, as they come, for ndjson and csv]' -r -f -a "expires\t'By remaining time'
local\t'By local address and port'
remote\t'By remote address and port'
none\t'As the kernel gives them'"
complete -c twtool -n "__fish_twtool_using_subcommand list" -l limit -d 'Show at most this many rows' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l columns -d 'Columns of a table or csv, by JSON key, or local and remote for address:port' -r -f -a "netns\t'Inode number of the network namespace'
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
complete -c twtool -n "__fish_twtool_using_subcommand list" -l source -d 'Which interface of the kernel to ask' -r -f -a "auto\t'sock_diag, and procfs where that is refused'
sock_diag\t'sock_diag alone'
procfs\t'/proc/net/tcp and tcp6: slower, times in steps of 10 ms, no cookie, mark or interface'"
complete -c twtool -n "__fish_twtool_using_subcommand list" -l record -d 'Write down what the kernel says and all that the answer depends on' -r -F
complete -c twtool -n "__fish_twtool_using_subcommand list" -l replay -d 'Read from a recording instead of the kernel' -r -F
complete -c twtool -n "__fish_twtool_using_subcommand list" -l netns -d 'Look into this network namespace: a name of `ip netns`, a path, or a process by its number; repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand list" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand list" -s 4 -l ipv4 -d 'Only IPv4 on the wire, IPv4-mapped sockets too'
complete -c twtool -n "__fish_twtool_using_subcommand list" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand list" -l fin-wait-2 -d 'Include orphaned FIN_WAIT_2, which lives in a timewait bucket too'
complete -c twtool -n "__fish_twtool_using_subcommand list" -l explain-filter -d 'Say what of the filter the kernel judges and what is judged here, and list nothing'
complete -c twtool -n "__fish_twtool_using_subcommand list" -l reverse -d 'Reverse the sort order'
complete -c twtool -n "__fish_twtool_using_subcommand list" -l no-header -d 'Leave out the header line, and the table\'s last line'
complete -c twtool -n "__fish_twtool_using_subcommand list" -l count -d 'Print the number of rows only'
complete -c twtool -n "__fish_twtool_using_subcommand list" -s q -l quiet -d 'Print nothing: exit code 0 if there is any, 1 if none'
complete -c twtool -n "__fish_twtool_using_subcommand list" -l force -d 'Replace the file of --record where it exists, if there is an answer'
complete -c twtool -n "__fish_twtool_using_subcommand list" -l all-netns -d 'Look into every network namespace that /proc/PID/ns/net and /run/netns show'
complete -c twtool -n "__fish_twtool_using_subcommand list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand summary" -s o -l output -d 'How to print the answer' -r -f -a "table\t'Aligned columns, for eyes'
json\t'One JSON document'
ndjson\t'A JSON record a line'
csv\t'A header line, then a record a line'"
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l color -d 'When to colour; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l by -d 'What to group by, separated by commas; repeat for more [default: class,direction,local-port,remote-addr,destination]' -r -f -a "local-port\t'Local port'
remote-addr\t'Remote address'
remote-port\t'Remote port'
destination\t'Remote address and port'
class\t'RFC 6335 class of the local port'
direction\t'Who connected, as inferred from listeners and port ranges'
netns\t'Network namespace'"
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l top -d 'Show the N largest of each group, and the others in one sum [default: 10, on the screen 5]' -r
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l record -d 'Write down what the kernel says and all that the answer depends on' -r -F
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l replay -d 'Read from a recording instead of the kernel' -r -F
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l netns -d 'Look into this network namespace: a name of `ip netns`, a path, or a process by its number; repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand summary" -s 4 -l ipv4 -d 'Only IPv4 on the wire, IPv4-mapped sockets too'
complete -c twtool -n "__fish_twtool_using_subcommand summary" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l force -d 'Replace the file of --record where it exists, if there is an answer'
complete -c twtool -n "__fish_twtool_using_subcommand summary" -l all-netns -d 'Look into every network namespace that /proc/PID/ns/net and /run/netns show'
complete -c twtool -n "__fish_twtool_using_subcommand summary" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand port" -s o -l output -d 'How to print the answer' -r -f -a "table\t'Aligned columns, for eyes'
json\t'One JSON document'
ndjson\t'A JSON record a line'
csv\t'A header line, then a record a line'"
complete -c twtool -n "__fish_twtool_using_subcommand port" -l color -d 'When to colour; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand port" -l netns -d 'Look into this network namespace: a name of `ip netns`, a path, or a process by its number' -r
complete -c twtool -n "__fish_twtool_using_subcommand port" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand port" -s 4 -l ipv4 -d 'Only IPv4 on the wire, IPv4-mapped sockets too'
complete -c twtool -n "__fish_twtool_using_subcommand port" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand port" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -s o -l output -d 'How to print the answer' -r -f -a "table\t'Aligned columns, for eyes'
json\t'One JSON document'
ndjson\t'A JSON record a line'
csv\t'A header line, then a record a line'"
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -l color -d 'When to colour; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -l addr -d 'Address to bind; repeat for more [default: 0.0.0.0 and ::]' -r
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -l with -d 'What your server sets before bind()' -r -f -a "none\t'No option'
reuseaddr\t'SO_REUSEADDR'
reuseport\t'SO_REUSEPORT'
both\t'Both'"
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -l netns -d 'Look into this network namespace: a name of `ip netns`, a path, or a process by its number' -r
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -s 4 -l ipv4 -d 'Only IPv4 on the wire, IPv4-mapped sockets too'
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -l listen -d 'Also listen(); it can take a real connection for a moment'
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -l demo -d 'Show on this kernel how TIME_WAIT blocks the port, in a private network namespace (no root, host untouched)'
complete -c twtool -n "__fish_twtool_using_subcommand bind-test" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand wait" -s o -l output -d 'How to print the answer' -r -f -a "table\t'Aligned columns, for eyes'
json\t'One JSON document'
ndjson\t'A JSON record a line'
csv\t'A header line, then a record a line'"
complete -c twtool -n "__fish_twtool_using_subcommand wait" -l color -d 'When to colour; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand wait" -l addr -d 'Address to bind; repeat for more [default: 0.0.0.0 and ::]' -r
complete -c twtool -n "__fish_twtool_using_subcommand wait" -l with -d 'What your server sets before bind()' -r -f -a "none\t'No option'
reuseaddr\t'SO_REUSEADDR'
reuseport\t'SO_REUSEPORT'
both\t'Both'"
complete -c twtool -n "__fish_twtool_using_subcommand wait" -l timeout -d 'Give up after this time, like 500ms, 10s or 5m; 0 tries once' -r
complete -c twtool -n "__fish_twtool_using_subcommand wait" -l netns -d 'Look into this network namespace: a name of `ip netns`, a path, or a process by its number' -r
complete -c twtool -n "__fish_twtool_using_subcommand wait" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand wait" -s 4 -l ipv4 -d 'Only IPv4 on the wire, IPv4-mapped sockets too'
complete -c twtool -n "__fish_twtool_using_subcommand wait" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand wait" -s q -l quiet -d 'Print nothing; the exit code tells'
complete -c twtool -n "__fish_twtool_using_subcommand wait" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -s o -l output -d 'How to print the answer' -r -f -a "table\t'Aligned columns, for eyes'
json\t'One JSON document'
ndjson\t'A JSON record a line'
csv\t'A header line, then a record a line'"
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l color -d 'When to colour; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l to -d 'Only this destination: an address, or address and port like 192.0.2.1:443 or [2001:db8::1]:443' -r
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l from -d 'Only from this local address' -r
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l top -d 'Show the N destinations with the fewest free ports [default: all, in a table 10]' -r
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l min-free -d 'Exit code 1 if any destination has fewer free ports than this, or than this share of the pool, like 10%' -r
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l netns -d 'Look into this network namespace: a name of `ip netns`, a path, or a process by its number' -r
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -s 4 -l ipv4 -d 'Only IPv4 on the wire, IPv4-mapped sockets too'
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -l no-probe -d 'Do not ask the kernel which ports are explicitly bound; read its list alone'
complete -c twtool -n "__fish_twtool_using_subcommand capacity" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -s o -l output -d 'How to print the answer' -r -f -a "table\t'Aligned columns, for eyes'
json\t'One JSON document'
ndjson\t'A JSON record a line'
csv\t'A header line, then a record a line'"
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -l color -d 'When to colour; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -l close-wait-after -d 'From when on a socket in CLOSE_WAIT counts as forgotten: the time since the peer\'s last ACK' -r
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -l netns -d 'Look into this network namespace: a name of `ip netns`, a path, or a process by its number' -r
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -s 4 -l ipv4 -d 'Only IPv4 on the wire, IPv4-mapped sockets too'
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -s v -l verbose -d 'Explain every check: what it does, what it does not do, sources'
complete -c twtool -n "__fish_twtool_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -s o -l output -d 'How to print the answer' -r -f -a "table\t'Aligned columns, for eyes'
json\t'One JSON document'
ndjson\t'A JSON record a line'
csv\t'A header line, then a record a line'"
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l color -d 'When to colour; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l port -d 'Local or remote port: number, range or service name; 80,443 or repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l local-port -d 'Local port; 80,443 or repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l remote-port -d 'Remote port; 80,443 or repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l local -d 'Local address or prefix, like 10.0.0.0/8; repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l remote -d 'Remote address or prefix; repeat for more' -r
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l class -d 'RFC 6335 class of the local port; repeat for more' -r -f -a "well-known\t'0-1023'
registered\t'1024-49151'
dynamic\t'49152-65535'"
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l direction -d 'Who connected, as inferred from listeners and port ranges; repeat for more' -r -f -a "inbound\t'A listener covers the local end'
outbound\t'None does, the local port is ephemeral and the remote one is not'
unknown\t'Neither can be said'"
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l expires-under -d 'Less remaining time than this: 500ms, 10s, 1m' -r
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l netns -d 'Look into this network namespace: a name of `ip netns`, a path, or a process by its number' -r
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -s 4 -l ipv4 -d 'Only IPv4 on the wire, IPv4-mapped sockets too'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l fin-wait-2 -d 'Include orphaned FIN_WAIT_2, which lives in a timewait bucket too'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l orphans -d 'Include closing sockets that no process has: FIN_WAIT_1, FIN_WAIT_2, CLOSING, LAST_ACK'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -l all -d 'Allow running without a filter'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -s y -l yes -d 'Do not ask'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -s n -l dry-run -d 'Show what would be removed, and remove nothing'
complete -c twtool -n "__fish_twtool_using_subcommand kill" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand demo" -s o -l output -d 'How to print the answer' -r -f -a "table\t'Aligned columns, for eyes'
json\t'One JSON document'
ndjson\t'A JSON record a line'
csv\t'A header line, then a record a line'"
complete -c twtool -n "__fish_twtool_using_subcommand demo" -l color -d 'When to colour; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand demo" -l pcap -d 'Also write the segments to a capture file, which Wireshark and tshark read' -r -F
complete -c twtool -n "__fish_twtool_using_subcommand demo" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand demo" -s 4 -l ipv4 -d 'Only IPv4 on the wire, IPv4-mapped sockets too'
complete -c twtool -n "__fish_twtool_using_subcommand demo" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand demo" -l step -d 'Wait for the Enter key before each step; the experiment itself does not wait, and is over by then'
complete -c twtool -n "__fish_twtool_using_subcommand demo" -l force -d 'Replace the file of --pcap where it exists'
complete -c twtool -n "__fish_twtool_using_subcommand demo" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand completions" -s o -l output -d 'How to print the answer' -r -f -a "table\t'Aligned columns, for eyes'
json\t'One JSON document'
ndjson\t'A JSON record a line'
csv\t'A header line, then a record a line'"
complete -c twtool -n "__fish_twtool_using_subcommand completions" -l color -d 'When to colour; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand completions" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand completions" -s 4 -l ipv4 -d 'Only IPv4 on the wire, IPv4-mapped sockets too'
complete -c twtool -n "__fish_twtool_using_subcommand completions" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand completions" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c twtool -n "__fish_twtool_using_subcommand man" -s o -l output -d 'How to print the answer' -r -f -a "table\t'Aligned columns, for eyes'
json\t'One JSON document'
ndjson\t'A JSON record a line'
csv\t'A header line, then a record a line'"
complete -c twtool -n "__fish_twtool_using_subcommand man" -l color -d 'When to colour; NO_COLOR in the environment turns auto off' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c twtool -n "__fish_twtool_using_subcommand man" -l json -d 'Same as -o json'
complete -c twtool -n "__fish_twtool_using_subcommand man" -s 4 -l ipv4 -d 'Only IPv4 on the wire, IPv4-mapped sockets too'
complete -c twtool -n "__fish_twtool_using_subcommand man" -s 6 -l ipv6 -d 'Only IPv6 on the wire'
complete -c twtool -n "__fish_twtool_using_subcommand man" -s h -l help -d 'Print help (see more with \'--help\')'
