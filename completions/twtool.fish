# Completions of twtool for fish: each word is completed by twtool itself.
function __twtool_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l program (string replace -r '^~/' "$HOME/" -- $words[1])
    # If the program is missing, fish would print an error into the prompt.
    command -q $program; or return
    # fish interprets quotes and backslashes, so twtool gets the word without them. A quote at the beginning is
    # still open, and `string unescape` fails with an open quote. So only this quote is removed.
    if string match -qr '^[\'"]' -- "$current"
        set current (string sub -s 2 -- "$current")
    else
        set current (string unescape -- "$current")
    end
    $program __complete (count $words) -- $words "$current" 2>/dev/null
end

complete -c twtool -f -k -a '(__twtool_complete)'
