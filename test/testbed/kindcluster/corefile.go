// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// hostsTTL is the time in seconds that clients keep a name of the hosts block: short, because a container may get
// another address when it is started again.
const hostsTTL = 5

// closeCorefile takes out of a Corefile what asks other name servers: forward, and loop, which sends test queries to
// see whether they come back. Without them CoreDNS refuses foreign names at once.
func closeCorefile(corefile string) string { return withoutPlugins(corefile, "forward", "loop") }

// setHosts replaces the hosts block of every server of a Corefile. entries are host names by IP address.
func setHosts(corefile string, entries map[string][]string) string {
	corefile = withoutPlugins(corefile, "hosts")
	if len(entries) == 0 {
		return corefile
	}
	var block strings.Builder
	block.WriteString("    hosts {\n")
	for _, ip := range slices.Sorted(maps.Keys(entries)) {
		fmt.Fprintf(&block, "        %s %s\n", ip, strings.Join(slices.Sorted(slices.Values(entries[ip])), " "))
	}
	fmt.Fprintf(&block, "        ttl %d\n        fallthrough\n    }\n", hostsTTL)

	var out strings.Builder
	depth := 0
	for line := range strings.Lines(corefile) {
		out.WriteString(line)
		if depth == 0 && opens(line) {
			out.WriteString(block.String())
		}
		depth += change(line)
	}
	return out.String()
}

// hostsOf returns the entries of the first hosts block of a Corefile.
func hostsOf(corefile string) map[string][]string {
	entries := map[string][]string{}
	inside := false
	for line := range strings.Lines(corefile) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0:
		case !inside:
			inside = fields[0] == "hosts" && opens(line)
		case fields[0] == "}":
			return entries
		default:
			if _, err := netip.ParseAddr(fields[0]); err == nil {
				entries[fields[0]] = fields[1:]
			}
		}
	}
	return entries
}

// withoutPlugins removes the plugins, with their blocks, from every server of a Corefile.
func withoutPlugins(corefile string, plugins ...string) string {
	var out strings.Builder
	depth, skip := 0, 0 // skip is the depth at which the removed block ends, or 0
	for line := range strings.Lines(corefile) {
		fields := strings.Fields(line)
		before := depth
		depth += change(line)
		switch {
		case skip > 0:
			if depth < skip {
				skip = 0
			}
		case before == 1 && len(fields) > 0 && slices.Contains(plugins, fields[0]):
			if depth > before {
				skip = depth
			}
		default:
			out.WriteString(line)
		}
	}
	return out.String()
}

// opens tells whether a line opens a block: in a Corefile, its brace is the last word.
func opens(line string) bool { return strings.HasSuffix(strings.TrimSpace(line), "{") }

// change returns by how many levels a line changes the depth of blocks.
func change(line string) int {
	switch trimmed := strings.TrimSpace(line); {
	case strings.HasPrefix(trimmed, "#"):
		return 0
	case opens(line):
		return 1
	case trimmed == "}":
		return -1
	}
	return 0
}
