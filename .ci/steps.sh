#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Functions that measure the steps of a script. Source this file; call begin at each step and report at the end.

step_names=()
step_starts=()

# begin NAME starts a step; the previous step ends.
begin() {
  step_names+=("$1")
  step_starts+=("$SECONDS")
}

# report TITLE prints a table with the duration of each step in seconds.
report() {
  local i end
  printf '\n%s\n' "$1"
  for i in "${!step_names[@]}"; do
    end=${step_starts[i + 1]:-$SECONDS}
    printf '%7d s  %s\n' $((end - step_starts[i])) "${step_names[i]}"
  done
  printf '%7d s  total\n' "$SECONDS"
}
