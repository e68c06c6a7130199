#!/usr/bin/env bash
# Sets up one worker of a TPU VM, and runs `bert-fast pretrain` there, with the run folder kept in a bucket.
#
#   vm.sh setup PACKAGE SHARDS               installs PACKAGE ("wheel": the one next to this script), copies SHARDS here
#   vm.sh restore KEPT                       copies the run folder from the bucket, unless there is one here
#   vm.sh start KEPT SECONDS ARGUMENT...     starts the run in the background
#   vm.sh main KEPT SECONDS ARGUMENT...      runs it here; every SECONDS, worker 0 copies the run folder to KEPT
#   vm.sh status                             prints idle, "running: LAST LINE" or "ended CODE"
#   vm.sh stop SECONDS                       lets the run save itself, and kills it if that takes longer
#
# On a slice, the workers share the run folder: worker 0 serves it by NFS, because every process writes a part of each
# checkpoint. Shards are only read, so each worker has its own copy.
set -euo pipefail

here=${BERT_FAST_VM:-$HOME/bert_fast_vm}
shared=$here/shared
run=$shared/run
# Files that bert-fast is still writing. gcloud matches these patterns from the start of the path within the run folder.
fleeting='(.*/)?[^/]*\.(part(ial)?|old)(/.*)?$|(.*/)?\.lock$'

# What the TPU's metadata server says. JAX reads the same two keys (jax/_src/clusters/cloud_tpu_cluster.py).
metadata() {
  curl -sf --retry 5 -H 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

worker() { metadata agent-worker-number; }

# Addresses of all workers, one a line. An entry is a host name, or name:id:address.
workers() { metadata worker-network-endpoints | tr ',' '\n' | awk -F: '{ print $NF }'; }

setup() {
  local package=$1 shards=$2 uv=$HOME/.local/bin/uv wheels
  mkdir -p "$shared"
  if ! [ -x "$uv" ]; then
    curl -LsSf --retry 5 https://astral.sh/uv/install.sh | sh # TPU images have Python 3.10, and bert_fast needs 3.11
  fi
  "$uv" venv --quiet --clear --python 3.12 "$here/env"
  if [ "$package" = wheel ]; then
    wheels=("$here"/*.whl)
    package="bert_fast[tpu] @ file://${wheels[0]}"
  fi
  "$uv" pip install --quiet --python "$here/env/bin/python" "$package"
  gcloud storage rsync --recursive --delete-unmatched-destination-objects "$shards" "$here/shards"
  share
  echo "worker $(worker): set up"
}

# Makes $shared one folder on all workers.
share() {
  if [ "$(workers | wc -l)" -le 1 ] || mountpoint -q "$shared"; then
    return
  fi
  if [ "$(worker)" = 0 ]; then
    sudo DEBIAN_FRONTEND=noninteractive apt-get install -qq -y nfs-kernel-server > /dev/null
    # User ids may differ between workers, so everything is done as this user.
    workers | tail -n +2 | while read -r client; do
      echo "$shared $client(rw,sync,no_subtree_check,all_squash,anonuid=$(id -u),anongid=$(id -g))"
    done | sudo tee /etc/exports.d/bert_fast.exports > /dev/null
    sudo exportfs -ra
  else
    sudo DEBIAN_FRONTEND=noninteractive apt-get install -qq -y nfs-common > /dev/null
    # Nothing is cached, because a process must immediately see what another one wrote.
    for _ in $(seq 60); do # until worker 0 serves it
      if sudo mount -t nfs -o vers=4.2,hard,actimeo=0,lookupcache=none "$(workers | head -n 1):$shared" "$shared"; then
        return
      fi
      sleep 5
    done
    echo "error: worker $(worker) cannot mount $shared of worker 0: does the network let the workers reach each other?" >&2
    return 1
  fi
}

restore() {
  local kept=$1 said
  [ -d "$run" ] && return
  if ! said=$(gcloud storage ls "$kept/" 2>&1); then
    [[ $said == *"matched no objects"* ]] && return # a new run
    echo "error: $kept cannot be read, so it is not known whether the run has begun: $said" >&2
    return 1
  fi
  rm -rf "$run.part"
  mkdir -p "$run.part"
  gcloud storage rsync --recursive "$kept" "$run.part"
  mv "$run.part" "$run"
}

# Copies the run folder to the bucket. A checkpoint counts only once its checksums.json is there, so that file comes
# last. So the bucket always holds a run that can be resumed, whenever a preemption happens.
keep() {
  local kept=$1 snapshot=$here/snapshot complete file step
  [ -n "$(ls -A "$run" 2> /dev/null)" ] || return 0
  rm -rf "$snapshot"
  # Links, so that nothing disappears while it is copied. `cp` fails on what bert-fast removes at this moment.
  cp -al "$run" "$snapshot" 2> /dev/null || true
  [ -n "$(ls -A "$snapshot")" ] || return 1 # nothing could be linked
  complete=$(cd "$snapshot" && find . -path './checkpoints/*/checksums.json' -not -path '*.part/*')
  gcloud storage rsync --recursive --exclude="$fleeting|(.*/)?checksums\.json$" "$snapshot" "$kept" || return 1
  for file in $complete; do
    gcloud storage cp "$snapshot/$file" "$kept/${file#./}" || return 1
  done
  for step in $(gcloud storage ls "$kept/checkpoints/" 2> /dev/null | sed 's|/$||; s|.*/||'); do
    if ! [ -d "$snapshot/checkpoints/$step" ]; then # bert-fast removed it
      gcloud storage rm --recursive "$kept/checkpoints/$step"
    fi
  done
}

main() {
  local kept=$1 seconds=$2 code=0 result child sleeper ended keeps number
  shift 2
  echo $$ > "$here/pid"
  rm -f "$here/ended"
  number=$(worker)
  keeps=$([ "$number" = 0 ] && echo yes || echo no)
  # With this value, JAX fails if the TPU cannot be used, instead of training on the CPU without a word.
  export JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu}
  "$here/env/bin/bert-fast" pretrain "$@" --distributed --config.data.dir="$here/shards" --workdir="$run" &
  child=$!
  echo "$child" > "$here/child"
  trap 'kill -TERM "$child" 2> /dev/null || true' TERM INT
  while true; do
    sleep "$seconds" &
    sleeper=$!
    ended='' result=0
    wait -n -p ended "$child" "$sleeper" || result=$? # a signal ends the wait early, and leaves `ended` without a value
    kill "$sleeper" 2> /dev/null || true
    if [ "${ended:-}" = "$child" ]; then
      code=$result
      break
    fi
    if [ "$keeps" = yes ]; then
      keep "$kept" || echo "the copy to $kept failed; the next one is in $seconds s" >&2
    fi
  done
  if [ "$keeps" = yes ]; then
    keep "$kept" || keep "$kept" || { echo "error: the last copy to $kept failed" >&2 && code=74; } # EX_IOERR
  fi
  echo "$code" > "$here/ended"
  return "$code"
}

is_running() { [ -f "$here/pid" ] && ! [ -f "$here/ended" ] && kill -0 "$(cat "$here/pid")" 2> /dev/null; }

status() {
  if is_running; then
    echo "running: $(tail -n 1 "$here/log.txt" | tr -d '\r')"
  elif [ -f "$here/ended" ]; then
    echo "ended $(cat "$here/ended")"
  else
    echo idle
  fi
}

start() {
  if is_running; then
    echo "error: a run is running here already" >&2
    return 3
  fi
  rm -f "$here/ended"
  nohup setsid bash "$0" main "$@" >> "$here/log.txt" 2>&1 < /dev/null &
  echo $! > "$here/pid"
}

stop() {
  local seconds=$1
  if is_running; then
    kill -TERM "$(cat "$here/child")" 2> /dev/null || true
  fi
  for _ in $(seq "$seconds"); do
    is_running || return 0
    sleep 1
  done
  echo "worker $(worker): the run did not save itself within $seconds s, and is killed" >&2
  kill -KILL "$(cat "$here/child")" 2> /dev/null || true
  while is_running; do sleep 1; done # until `main` has ended; on worker 0 it copies the run folder first
}

"$@"
