#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Points containerd at the registry caches of the Shoot while they answer, and back at the upstreams while they do not.
# A pull must never be worse than without a cache, so in doubt the cache is taken out.
#
#   run       probe and write until SIGTERM (default; ExecStart of the unit)
#   withdraw  take back everything that run has written (ExecStopPost, hence after a crash too)
#   clean     remove what gardener-node-agent leaves behind when it removes the unit: directories, and what run has made
#
# In:  $entries/<upstream>/hosts.toml, what containerd shall read, $entries/<upstream>/endpoint, the URL of the cache, and
#      $entries/<upstream>/engine, the program that serves it; may be missing.
#      $bundle, the roots of the caches whose URL is https.
# Out: $certs/<upstream>/hosts.toml. containerd reads it anew for every pull, so nothing has to be restarted. The name of
#      the directory keeps its colon (host:5000): containerd 1.7 and 2.x look for host_5000_ first and then for it, and
#      gardener-node-agent uses it, so that nobody can configure an upstream twice without seeing the other.
#      $trusted, the roots that a hosts.toml with https names. A copy of our own, because containerd fails every pull of
#      an upstream whose hosts.toml names a file that is not there or has no certificate in it, and gardener-node-agent
#      replaces and deletes $bundle when it likes. So the copy is there before the first hosts.toml that names it and
#      after the last one, and holds only what a cache has just been verified with.

set -u
shopt -s nullglob
umask 022
export LC_ALL=C

root=${REGISTRY_CACHE_ROOT:-}              # the tests' file system instead of the node's
interval=${REGISTRY_CACHE_INTERVAL:-200}   # 1/100 s from the start of one round of probes to the next
limit=90                                   # 1/100 s that all answers may take; two seconds later makes less than three,
                                           # and another round, for caches that accept connections, less than five
patience=30                                # 1/100 s of them in which a cache in use should say that it is alive
# An overloaded node is late itself: connections and handshakes of its own probes take seconds. It would withdraw a cache
# that answers, and so would all nodes that pull concurrently.
crowd=8                                    # runnable tasks per processor, now and on average, from which it is overloaded
overload_limit=450                         # 1/100 s that the answers of caches in use may take on an overloaded node
# A cache in use is only asked in each round whether it is alive, and verified in each fifth: to start curl costs more
# than all the rest of a round, and a TLS handshake costs the cache more than the request.
thorough=5                                 # rounds
# Seconds for which a root is still trusted that the bundle no longer has. When Gardener ends the rotation of the CA, the
# nodes may hear of it before the last cache has its new certificate: the kubelet takes up to two minutes to replace it.
retention=${REGISTRY_CACHE_RETENTION:-600}

state=$root/var/lib/registry-cache
entries=$state/hosts
certs=$root/etc/containerd/certs.d
bundle=$state/ca.pem
trusted=$state/trusted-ca.pem
cleaner=$root/run/registry-cache-clean
enabled=$root/etc/systemd/system/multi-user.target.wants/configure-containerd-registries.service

# The first line of every file that is ours. A file without it is somebody else's.
marker='# Managed by configure-containerd-registries.service of the registry cache. Without this line it is left alone.'
temporary=.hosts.toml.registry-cache
begin='-----BEGIN CERTIFICATE-----'
end='-----END CERTIFICATE-----'

declare -A answer=()     # URL -> why the cache cannot be used, empty if it can
declare -A usable=()     # URL -> 1 if the cache could be used in the last round
declare -A silent=()     # URL -> 1 if the cache accepted a connection in this round and did not answer in time
declare -A talkative=()  # URL -> 1 if the cache says without TLS, too, whether it is alive
declare -A noted=()      # upstream -> what the journal says about it
declare -A halves=()     # upstream -> in how many rounds its entry was incomplete
offered=                 # the bundle as it was last seen
retired=                 # roots that are trusted although the bundle has them no longer
forget_at=0              # when they are not any more, in $SECONDS
unused=0                 # in how many rounds nobody has needed roots
rounds=0                 # in which caches were asked
processors=1             # of this node

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

# Sets REPLY to the file with the roots to probe https with: $trusted if it is up to date, otherwise its next version,
# which adopt puts there. Returns false and sets REPLY to the reason if there is none.
trust() {
  local wanted certificate rest error
  load "$bundle"
  if [[ $REPLY != *"$begin"*"$end"* ]]; then
    REPLY="${bundle#"$root"} has no certificate"
    return 1
  fi
  wanted=$REPLY
  load "$trusted"
  if [[ $wanted != "$offered" ]]; then
    offered=$wanted retired='' forget_at=$((SECONDS + retention)) rest=$REPLY
    while [[ $rest == *"$begin"*"$end"* ]]; do
      certificate=${rest#*"$begin"}
      certificate=$begin${certificate%%"$end"*}$end
      rest=${rest#*"$end"}
      [[ $offered == *"$certificate"* ]] || retired+=$certificate$'\n'
    done
  elif ((SECONDS >= forget_at)); then
    retired=
  fi
  wanted=${offered%$'\n'}$'\n'$retired
  if [[ $REPLY == "$wanted" ]]; then
    REPLY=$trusted
    return
  fi
  load "$trusted.new"
  if [[ $REPLY != "$wanted" ]] && ! error=$( { printf '%s' "$wanted" >"$trusted.new" && sync -- "$trusted.new"; } 2>&1); then
    REPLY="its roots cannot be written: $error"
    return 1
  fi
  REPLY=$trusted.new
}

# Makes the file that trust has made the one that hosts.toml names. A cache has been verified with it, so containerd will
# be able to read it, too. Prints the error if there is one. The directory is synced, because what will name the file may
# be on another disk.
adopt() {
  mv -f -- "$trusted.new" "$trusted" && sync -- "$state"
} 2>&1

# Removes the copy of the roots, unless a hosts.toml names it.
distrust() {
  local file
  for file in "$certs"/*/hosts.toml; do
    load "$file"
    [[ $REPLY != *"\"${trusted#"$root"}\""* ]] || return 0
  done
  rm -f -- "$trusted" "$trusted.new"
  offered='' retired=''
}

# Sets REPLY to a time in 1/100 s that no clock sets back. Does not fork.
now() {
  read -r REPLY _ </proc/uptime
  REPLY=$((10#${REPLY/./}))
}

# Sets REPLY to $1, in 1/100 s, as read and curl want it.
seconds() {
  printf -v REPLY '%d.%02d' $(($1 / 100)) $(($1 % 100))
}

# Returns true if this node is overloaded. Does not fork.
overloaded() {
  local average runnable
  read -r average _ _ runnable _ 2>/dev/null <"$root/proc/loadavg" || return
  ((${average%.*} >= crowd * processors && ${runnable%/*} >= crowd * processors))
}

# Prints $1, the URL of a cache, if the cache is alive. Nothing but the kernel limits how long it takes.
ask() {
  local request=$'GET /v2/ HTTP/1.0\r\nHost: '"${1#*//}"$'\r\n\r\n' status=200 socket response
  if [[ $1 == https://* ]]; then
    # In the place of a handshake Go's library reads as much as this, answers that it wants TLS, and closes the connection.
    # More than that could come too late, and cost the answer.
    request='GET /' status=400
  fi
  [[ $1 =~ ^https?://(\[([0-9a-fA-F:]+)\]|([0-9a-zA-Z.-]+)):([0-9]+)$ ]] || return
  exec {socket}<>"/dev/tcp/${BASH_REMATCH[2]}${BASH_REMATCH[3]}/${BASH_REMATCH[4]}" || return
  printf '%s' "$request" >&"$socket"
  # The answer ends with the connection, since this is HTTP/1.0.
  IFS= read -r -d '' -n 65536 response <&"$socket"
  exec {socket}<&-
  [[ $response == HTTP/1.[01]" $status "* ]] && echo "$1"
}

# Sets answer for those of the caches at the URLs $1 and following that are alive.
listen() {
  local url patient answers asking
  now
  patient=$((REPLY + patience))
  # One process for all, because processes are what costs. Whoever has to wait behind a cache that hangs is verified.
  exec {answers}< <(for url; do ask "$url"; done 2>/dev/null)
  asking=$!
  while now; ((REPLY < patient)); do
    seconds $((patient - REPLY))
    if IFS= read -r -t "$REPLY" url <&"$answers"; then
      answer[$url]=
    elif (($? <= 128)); then
      asking= # all have been asked
      break
    fi
  done
  [[ -z $asking ]] || kill "$asking" 2>/dev/null
  exec {answers}<&-
}

# Sets answer for the caches at the URLs $3 and following, all of which have $2 seconds, those with https verified by the
# roots in file $1.
verify() {
  local url line code connected status problem='curl ended without a result' arguments=(--max-time "$2")
  [[ -z $1 ]] || arguments+=(--cacert "$1")
  shift 2
  for url; do
    arguments+=(--output /dev/null "$url/v2/")
  done
  # -q: the configuration of the user is not ours; --noproxy: caches are inside of the cluster, a proxy is not.
  while IFS= read -r line; do
    if [[ ! $line =~ ^([0-9]+)' '([0-9.]+)' '([0-9]{3})' '([^ ]+)/v2/' '(.*)$ ]]; then
      problem=$line
      continue
    fi
    code=${BASH_REMATCH[1]} connected=${BASH_REMATCH[2]} status=${BASH_REMATCH[3]} url=${BASH_REMATCH[4]}
    answer[$url]=${BASH_REMATCH[5]}
    if [[ -z ${answer[$url]} && $status != 200 ]]; then
      answer[$url]="GET /v2/ answered $status"
    elif [[ $code == 28 && ! $connected =~ ^[0.]+$ ]]; then # a timeout
      silent[$url]=1
    fi
  done < <(curl -q --silent --no-progress-meter --parallel --parallel-immediate --noproxy '*' \
    --write-out '%{exitcode} %{time_connect} %{http_code} %{url_effective} %{errormsg}\n' "${arguments[@]}" 2>&1)
  for url; do
    [[ -n ${answer[$url]+answered} ]] || answer[$url]=$problem
  done
}

# Sets answer for the caches at the URLs $2 and following: why each cannot be used, nothing if it can. Those that could be
# used in the last round and are in $talkative are asked whether they are alive, unless it is time for more. The others, and
# those that have not said so, are verified, if they have https with the roots in file $1.
probe() {
  local roots=$1 url end left asked=() rest=() in_use=
  local -A before=()
  shift
  answer=() silent=()
  for url in "${!usable[@]}"; do before[$url]=1; done
  now
  end=$((REPLY + limit))
  ((rounds++ % thorough)) || usable=()
  for url; do
    [[ -z ${usable[$url]-} || -z ${talkative[$url]-} ]] || asked+=("$url")
  done
  ((${#asked[@]} == 0)) || listen "${asked[@]}"
  for url; do
    [[ -z ${answer[$url]+alive} ]] || continue
    rest+=("$url")
    [[ -z ${before[$url]-} ]] || in_use=1
  done
  if ((${#rest[@]})); then
    # Other caches do not get more time, or an unavailable one would delay each round.
    [[ -z $in_use ]] || ! overloaded || end=$((end - limit + overload_limit))
    now
    left=$((end - REPLY))
    # Little time is left only if this node itself was delayed.
    seconds $((left > patience ? left : patience))
    verify "$roots" "$REPLY" "${rest[@]}"
  fi
  usable=()
  for url; do
    if [[ -z ${answer[$url]} ]]; then
      usable[$url]=1
    elif [[ -n ${before[$url]-} && -n ${silent[$url]-} ]]; then
      # A cache can be slow while many nodes pull, and then the upstream should not get all of them. The next round verifies
      # it, and decides.
      answer[$url]=
    fi
  done
}

# Sets REPLY to what somebody else has put into $certs/$1, or to our own hosts.toml and returns false.
foreign() {
  local file certificate=''
  for file in "$certs/$1"/*; do
    [[ $file != *.crt && $file != *.cert && $file != *.key ]] || certificate=${file##*/}
  done
  load "$certs/$1/hosts.toml"
  if [[ -e $certs/$1/hosts.toml && $REPLY != "$marker"$'\n'* ]]; then
    REPLY=hosts.toml
  elif [[ -n $certificate ]]; then
    # containerd uses them for the upstream, but only where there is no hosts.toml.
    [[ -z $REPLY ]] || remove "$1"
    REPLY=$certificate
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
  local -A urls=() configs=() reasons=() probed=()
  local directory file upstream url config roots='' distrusted='' error upstreams=() secure=()

  talkative=()
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
    if [[ $config != "$marker"$'\n'* || $config != *"[host.\"$url\"]"* ]] ||
      [[ $url == https://* && $config != *$'\n  ca = "'"${trusted#"$root"}"$'"\n'* ]]; then
      reasons[$upstream]='its hosts.toml does not belong to its endpoint'
    elif [[ $url == https://* ]]; then
      secure+=("$upstream")
      # The stock registry, too, but it writes a line into its log each time.
      load "$directory/engine"
      [[ $REPLY != registry-cache$'\n' ]] || talkative[$url]=1
    else
      probed[$url]=1 talkative[$url]=1
    fi
  done

  if ((${#secure[@]})); then
    if trust; then
      roots=$REPLY
      [[ $roots == "$trusted" ]] || usable=() # they can show something else now
      for upstream in "${secure[@]}"; do probed[${urls[$upstream]}]=1; done
    else
      distrusted=$REPLY
    fi
  fi
  ((${#probed[@]} == 0)) || probe "$roots" "${!probed[@]}"
  if [[ $roots == "$trusted.new" ]]; then
    for upstream in "${secure[@]}"; do
      [[ -z ${answer[${urls[$upstream]}]} ]] || continue
      error=$(adopt) || distrusted="its roots cannot be written: $error"
      break
    done
  fi
  [[ -z $distrusted ]] || for upstream in "${secure[@]}"; do reasons[$upstream]=$distrusted; done
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

  if ((${#secure[@]})); then
    unused=0
  elif ((++unused > 1)) && [[ -e $trusted || -e $trusted.new ]]; then
    # Not at once: containerd may have read a hosts.toml just before it was replaced, and open the file just now.
    distrust
  fi
}

run() {
  local idle next left
  processors=$(nproc) || processors=1
  trap 'exit 0' TERM INT
  exec {idle}<> <(:) # nobody writes into it
  now
  next=$REPLY
  while :; do
    round
    # From start to start: a cache that hangs must not delay the probes of the others.
    next=$((next + interval))
    now
    left=$((next - REPLY))
    if ((left > 0)); then
      seconds "$left"
      read -r -t "$REPLY" <&"$idle"
    else
      next=$REPLY
    fi
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
  # Somebody has to stay behind for these, from a copy because this script is one of the files. The copy of the roots
  # stays until then, too: containerd may be about to open it, and a unit that is started again goes on with it.
  [[ -d $state && ! -L $enabled ]] || return 0
  if ! { cp -- "$0" "$cleaner" && systemd-run --quiet --collect /bin/bash "$cleaner" clean; }; then
    distrust
    echo "the directories in ${state#"$root"} stay when this unit is removed"
  fi
}

clean() {
  local directory i
  # Ten minutes: gardener-node-agent waits at most three for the registries of others before it deletes the files.
  for ((i = 0; i < 600; i++)); do
    [[ -d $state && ! -L $enabled ]] || break
    [[ -e $bundle ]] || distrust
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
