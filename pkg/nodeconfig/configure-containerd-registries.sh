#!/bin/bash
#
# Points containerd at the registry caches of the Shoot while they answer, and back at the upstreams while they do not.
# A pull must never be worse than without a cache, so in doubt the cache is taken out.
#
#   run       probe and write until SIGTERM (default; ExecStart of the unit)
#   withdraw  take back everything that run has written (ExecStopPost, hence after a crash too)
#   clean     remove the directories that gardener-node-agent leaves behind when it removes the unit
#
# In:  $entries/<upstream>/hosts.toml, what containerd shall read, and $entries/<upstream>/endpoint, the URL of the cache.
# Out: $certs/<upstream>/hosts.toml. containerd reads it anew for every pull, so nothing has to be restarted. The name of
#      the directory keeps its colon (host:5000): containerd 1.7 and 2.x look for host_5000_ first and then for it, and
#      gardener-node-agent uses it, so that nobody can configure an upstream twice without seeing the other.

set -u
shopt -s nullglob
umask 022
export LC_ALL=C

root=${REGISTRY_CACHE_ROOT:-}              # the tests' file system instead of the node's
interval=${REGISTRY_CACHE_INTERVAL:-2}     # seconds from the start of one round of probes to the next

state=$root/var/lib/registry-cache
entries=$state/hosts
certs=$root/etc/containerd/certs.d
cleaner=$root/run/registry-cache-clean
enabled=$root/etc/systemd/system/multi-user.target.wants/configure-containerd-registries.service

# The first line of every file that is ours. A file without it is somebody else's.
marker='# Managed by configure-containerd-registries.service of the registry cache. Without this line it is left alone.'
temporary=.hosts.toml.registry-cache

declare -A answer=()  # URL -> why the cache cannot be used, empty if it can
declare -A noted=()   # upstream -> what the journal says about it
declare -A halves=()  # upstream -> in how many rounds its entry was incomplete

# Sets REPLY to the content of file $1, to nothing if there is none. Does not fork.
load() {
  REPLY=
  { IFS= read -r -d '' -n 65536 REPLY; } 2>/dev/null <"$1"
}

# Prints a line for the journal if $2, the state of upstream $1, is news; otherwise returns false.
note() {
  [[ ${noted[$1]-} == "$2" ]] && return 1
  noted[$1]=$2
  echo "$1: $3"
}

# Asks the caches with the given URLs all at once. One second is the limit: who pulls would wait as long.
probe() {
  local url line problem='curl ended without a result' lines=() arguments=()
  answer=()
  for url; do
    arguments+=(--output /dev/null "$url/v2/")
  done
  # -q: the configuration of the user is not ours; --noproxy: caches are inside of the cluster, a proxy is not.
  mapfile -t lines < <(curl -q --silent --no-progress-meter --parallel --parallel-immediate --noproxy '*' \
    --max-time 1 --write-out '%{http_code} %{url_effective} %{errormsg}\n' "${arguments[@]}" 2>&1)
  for line in "${lines[@]}"; do
    if [[ ! $line =~ ^([0-9]{3})' '([^ ]+)/v2/' '(.*)$ ]]; then
      problem=$line
    elif [[ -n ${BASH_REMATCH[3]} ]]; then
      answer[${BASH_REMATCH[2]}]=${BASH_REMATCH[3]}
    elif [[ ${BASH_REMATCH[1]} != 200 ]]; then
      answer[${BASH_REMATCH[2]}]="GET /v2/ answered ${BASH_REMATCH[1]}"
    else
      answer[${BASH_REMATCH[2]}]=
    fi
  done
  for url; do
    [[ -n ${answer[$url]+answered} ]] || answer[$url]=$problem
  done
}

# Sets REPLY to what somebody else has put into $certs/$1, or to our own hosts.toml and returns false.
foreign() {
  local certificates=("$certs/$1"/*.crt "$certs/$1"/*.cert "$certs/$1"/*.key)
  load "$certs/$1/hosts.toml"
  if [[ -e $certs/$1/hosts.toml && $REPLY != "$marker"$'\n'* ]]; then
    REPLY=hosts.toml
  elif ((${#certificates[@]})); then
    # containerd uses them for the upstream, but only where there is no hosts.toml.
    [[ -z $REPLY ]] || remove "$1"
    REPLY=${certificates[0]##*/}
  else
    return 1
  fi
}

# Replaces the hosts.toml of upstream $1 by content $2. containerd must never see half of it, hence the rename, and a
# node that loses power must not come back with an empty file that looks like somebody else's, hence the sync. Prints
# the error if there is one.
replace() {
  mkdir -p -- "$certs/$1" && printf '%s' "$2" >"$certs/$1/$temporary" && sync -- "$certs/$1/$temporary" &&
    mv -f -- "$certs/$1/$temporary" "$certs/$1/hosts.toml"
} 2>&1

# Removes what we have in $certs/$1, and the directory if nobody else has something in it: an empty one would keep
# containerd from reading _default.
remove() {
  rm -f -- "$certs/$1/hosts.toml" "$certs/$1/$temporary"
  [[ ! -d $certs/$1 ]] || rmdir --ignore-fail-on-non-empty -- "$certs/$1"
}

# Brings the hosts.toml of upstream $1 with the cache at URL $2 and the configuration $3 in line with $4: why the cache
# cannot be used, empty if it can.
apply() {
  local upstream=$1 url=$2 config=$3 reason=$4
  local header=${config%%$'\n['*} server wanted='' error
  server=${header#*'server = "'}
  server=${server%%'"'*}

  if foreign "$upstream"; then
    note "$upstream" foreign "not touched, ${certs#"$root"}/$upstream has a $REPLY of somebody else"
    return
  fi
  local current=$REPLY
  if [[ -z $reason ]]; then
    wanted=$config
  elif [[ -n $current && ! -e $certs/_default ]]; then
    wanted=$header
  fi

  if [[ $current == "$wanted" ]]; then
    :
  elif [[ -z $wanted ]]; then
    remove "$upstream"
  elif ! error=$(replace "$upstream" "$wanted"); then
    remove "$upstream"
    note "$upstream" unwritable "pulled from $server, hosts.toml cannot be written: $error"
    return
  fi

  if [[ -z $reason ]]; then
    note "$upstream" "cache $url" "pulled through the cache $url, GET /v2/ answered 200" && return
  else
    note "$upstream" upstream "pulled from $server, the cache $url is not used: $reason" && return
  fi
  [[ $current == "$wanted" ]] || echo "$upstream: hosts.toml had been changed, restored"
}

# One round: reads all entries, probes their caches, applies the answers, and removes what has no entry any more.
round() {
  local -A urls=() configs=() reasons=()
  local directory file upstream url config upstreams=()

  for directory in "$entries"/*/; do
    directory=${directory%/}
    upstream=${directory##*/}
    load "$directory/endpoint"
    url=${REPLY%%$'\n'*}
    load "$directory/hosts.toml"
    config=$REPLY
    if [[ -z $url || -z $config ]]; then
      # gardener-node-agent creates the directory before the files, and deletes the files only.
      halves[$upstream]=$((${halves[$upstream]-0} + 1))
      ((${halves[$upstream]} < 2)) || rmdir --ignore-fail-on-non-empty -- "$directory"
      continue
    fi
    halves[$upstream]=0
    upstreams+=("$upstream")
    urls[$upstream]=$url
    configs[$upstream]=$config
    if [[ $config != "$marker"$'\n'* || $config != *"[host.\"$url\"]"* ]]; then
      reasons[$upstream]='its hosts.toml does not belong to its endpoint'
    fi
  done

  ((${#upstreams[@]})) && probe "${urls[@]}"
  for upstream in "${upstreams[@]}"; do
    url=${urls[$upstream]}
    apply "$upstream" "$url" "${configs[$upstream]}" "${reasons[$upstream]-${answer[$url]}}"
  done

  for file in "$certs"/*/hosts.toml; do
    upstream=${file%/hosts.toml}
    upstream=${upstream##*/}
    [[ -z ${urls[$upstream]+configured} ]] || continue
    load "$file"
    [[ $REPLY == "$marker"$'\n'* ]] || continue
    remove "$upstream"
    unset 'noted[$upstream]'
    echo "$upstream: not configured any more, hosts.toml removed"
  done
}

run() {
  local timer=''
  trap 'kill "$timer" 2>/dev/null; exit 0' TERM INT  # there may be no timer yet
  while :; do
    # Beside the round, not after it: a cache that hangs must not delay the probes of the others.
    sleep "$interval" >/dev/null 2>&1 &
    timer=$!
    round
    wait "$timer"
  done
}

withdraw() {
  local directory upstream
  for directory in "$certs"/*/; do
    upstream=${directory%/}
    upstream=${upstream##*/}
    load "$directory/hosts.toml"
    if [[ $REPLY == "$marker"$'\n'* ]]; then
      remove "$upstream"
      echo "$upstream: pulled from the upstream, this unit has stopped"
    elif [[ -e $directory/$temporary ]]; then
      rm -f -- "$directory/$temporary"
      rmdir --ignore-fail-on-non-empty -- "$directory"
    fi
  done

  # gardener-node-agent disables, stops and deletes the unit, and then deletes the files but not their directories.
  # Somebody has to stay behind for these, from a copy because this script is one of the files.
  [[ -d $state && ! -L $enabled ]] || return 0
  if ! { cp -- "$0" "$cleaner" && systemd-run --quiet --collect /bin/bash "$cleaner" clean; }; then
    echo "the directories in ${state#"$root"} stay when this unit is removed"
  fi
}

clean() {
  local directory i
  # Ten minutes: gardener-node-agent waits at most three for the registries of others before it deletes the files.
  for ((i = 0; i < 600; i++)); do
    [[ -d $state && ! -L $enabled ]] || break
    for directory in "$entries"/*/ "$entries" "$state"; do
      [[ ! -d $directory ]] || rmdir --ignore-fail-on-non-empty -- "$directory"
    done
    [[ ! -d $state ]] || sleep 1
  done
  rm -f -- "$0"
}

# On one line with exit: bash must not read on in a file that has been replaced meanwhile.
case ${1:-run} in
  run) run ;;
  withdraw) withdraw ;;
  clean) clean ;;
  *) echo "usage: ${0##*/} [run|withdraw|clean]" >&2 && exit 2 ;;
esac; exit
