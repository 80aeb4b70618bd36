# Completions of twtool for bash: each word is completed by twtool itself.

_twtool() {
    local line=${COMP_LINE:0:COMP_POINT} raw rest i
    local -a words=()
    # bash also splits words at = and :. This loop joins the parts, which have no blank between them.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        rest=${line#"${line%%[![:blank:]]*}"}
        raw=${COMP_WORDS[i]}
        ((i < COMP_CWORD)) || raw=$rest
        if ((i > 0)) && [[ -n $line && $rest == "$line" ]]; then
            words[${#words[@]} - 1]+=$raw
        else
            words+=("$raw")
        fi
        line=${rest:${#raw}}
    done
    local last=$((${#words[@]} - 1)) quoted=
    [[ ${words[last]} != [\'\"]* ]] || quoted=yes
    # The shell interprets quotes and backslashes, so twtool gets the words without them.
    words=("${words[@]//[\\\'\"]/}")

    # bash replaces only what follows the last = or :.
    local value _ prefix=
    [[ -n $quoted ]] || prefix=${words[last]%"${words[last]##*[=:]}"}
    COMPREPLY=()
    while IFS=$'\t' read -r value _; do
        value=${value#"$prefix"}
        if [[ $value == *[!a-zA-Z0-9_.,:/@%+=-]* ]]; then
            [[ -z $quoted ]] || continue
            printf -v value %q "$value"
        fi
        COMPREPLY+=("$value")
    done < <("${1/#\~\//$HOME/}" __complete "$last" -- "${words[@]}" 2>/dev/null)
    # If the only completion is a folder, add no blank, so that the user can go on with a name in that folder.
    [[ ${#COMPREPLY[@]} -ne 1 || ${COMPREPLY[0]} != */ ]] || compopt -o nospace 2>/dev/null
}

complete -o nosort -o default -F _twtool twtool 2>/dev/null || complete -o default -F _twtool twtool
