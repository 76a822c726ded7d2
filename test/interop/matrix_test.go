// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// phase is a condition under which each client pulls each reference.
type phase string

const (
	direct  phase = "direct"           // from the upstream
	cold    phase = "cold"             // through a cache without content
	warm    phase = "warm"             // through a cache with the content
	stopped phase = "upstream stopped" // as warm, but the upstream refuses connections
)

// phases returns all phases in the order of the pulls.
func phases() []phase { return []phase{direct, cold, warm, stopped} }

// result is the result of one pull.
type result struct {
	content []string // as returned by the client; nil if the pull has failed
	err     error
}

// pair contains the results of one client with one upstream: for each phase those of all references, by name.
type pair struct {
	upstream, client string
	results          map[phase]map[string]result
}

// regressions returns a message for each pull through the cache that is worse than the direct pull: it fails although the
// direct pull works, or its content is different.
func (p pair) regressions() []string {
	var messages []string
	for _, ref := range sortedKeys(p.results[direct]) {
		want := p.results[direct][ref]
		if want.err != nil {
			continue
		}
		for _, through := range phases()[1:] {
			got, ok := p.results[through][ref]
			switch {
			case !ok:
				messages = append(messages, fmt.Sprintf("%s, %s: not pulled", ref, through))
			case got.err != nil:
				messages = append(messages, fmt.Sprintf("%s, %s: works directly, fails through the cache: %v", ref, through, got.err))
			case !slices.Equal(got.content, want.content):
				messages = append(messages, fmt.Sprintf("%s, %s: content %s, direct pull: %s", ref, through,
					strings.Join(got.content, " "), strings.Join(want.content, " ")))
			}
		}
	}
	return messages
}

// working returns the number of successful pulls of a phase and the number of all.
func (p pair) working(of phase) (working, all int) {
	for _, r := range p.results[of] {
		all++
		if r.err == nil {
			working++
		}
	}
	return working, all
}

// checkComplete returns an error for a successful pull without the content that the reference names.
func checkComplete(ref reference, content []string) error {
	if slices.Contains(content, ref.root) || ref.chart != "" && slices.Contains(content, ref.chart) {
		return nil
	}
	return fmt.Errorf("the client reports %s, want %s among them", strings.Join(content, " "), ref.root)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func TestRegressions(t *testing.T) {
	t.Parallel()
	ok, other, failed := result{content: []string{"a"}}, result{content: []string{"b"}}, result{err: fmt.Errorf("refused")}
	for name, tc := range map[string]struct {
		direct, cold, warm, stopped result
		want                        []string
	}{
		"all equal":        {ok, ok, ok, ok, nil},
		"fails directly":   {failed, failed, ok, failed, nil},
		"fails when cold":  {ok, failed, ok, ok, []string{"image, cold: works directly, fails through the cache: refused"}},
		"fails if stopped": {ok, ok, ok, failed, []string{"image, upstream stopped: works directly, fails through the cache: refused"}},
		"other content":    {ok, ok, other, ok, []string{"image, warm: content b, direct pull: a"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := pair{results: map[phase]map[string]result{
				direct: {"image": tc.direct}, cold: {"image": tc.cold}, warm: {"image": tc.warm}, stopped: {"image": tc.stopped},
			}}
			if got := p.regressions(); !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	missing := pair{results: map[phase]map[string]result{direct: {"image": ok}, cold: {"image": ok}, warm: {"image": ok}}}
	if got := missing.regressions(); !slices.Equal(got, []string{"image, upstream stopped: not pulled"}) {
		t.Errorf("a missing phase: %q", got)
	}
}
