// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/registry-cache/extension/test/testbed/workspace"
)

// debian stands for apt-get and dpkg-query. It records what would change the machine.
type debian struct {
	installed   map[string]bool
	available   map[string]bool
	updateFails bool
	changes     []string
}

func (d *debian) run(_ context.Context, program string, args ...string) ([]byte, error) {
	line := program + " " + strings.Join(args, " ")
	switch {
	case program == "dpkg-query":
		var out strings.Builder
		var err error
		for _, name := range args[2:] {
			switch {
			case d.installed[name]:
				out.WriteString(name + " installed\n")
			case d.available[name]:
				out.WriteString(name + " not-installed\n")
			default:
				err = &exec.ExitError{}
			}
		}
		return []byte(out.String()), err
	case line == "apt-get update -qq":
		if d.updateFails {
			return nil, errors.New("a source does not answer")
		}
		return nil, nil
	}
	for _, name := range args[1:] {
		if !strings.HasPrefix(name, "-") && name != "install" && !d.available[name] {
			return nil, errors.New("unable to locate package " + name)
		}
	}
	if args[0] != "--simulate" {
		d.changes = append(d.changes, line)
	}
	return nil, nil
}

func TestInstall(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		host      debian
		packages  []string
		changes   []string
		progress  string
		wantError string
	}{
		"all there": {
			host:     debian{installed: map[string]bool{"podman": true}, updateFails: true},
			packages: []string{"podman"},
		},
		"one missing, said so": {
			host:     debian{installed: map[string]bool{"podman": true}, available: map[string]bool{"runc": true}},
			packages: []string{"runc", "podman", "runc"},
			changes:  []string{"apt-get install -qq -y --no-install-recommends runc"},
			progress: "installing Debian packages that this host lacks: runc ...",
		},
		"a source of another vendor is down": {
			host:     debian{available: map[string]bool{"runc": true}, updateFails: true},
			packages: []string{"runc"},
			changes:  []string{"apt-get install -qq -y --no-install-recommends runc"},
			progress: "runc",
		},
		"one cannot be installed: none is": {
			host:      debian{available: map[string]bool{"runc": true}, updateFails: true},
			packages:  []string{"runc", "no-such-package"},
			progress:  "no-such-package runc",
			wantError: "needs the Debian packages no-such-package runc",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			err := packageManager{run: tc.host.run}.install(t.Context(), workspace.NewProgress(&out), tc.packages...)
			switch {
			case tc.wantError == "" && err != nil:
				t.Fatal(err)
			case tc.wantError != "" && (err == nil || !strings.Contains(err.Error(), tc.wantError)):
				t.Errorf("error %v, want %q", err, tc.wantError)
			}
			if diff := cmp.Diff(tc.changes, tc.host.changes); diff != "" {
				t.Errorf("changes of the host (-want +got):\n%s", diff)
			}
			if !strings.Contains(out.String(), tc.progress) || (tc.progress == "" && out.Len() > 0) {
				t.Errorf("progress %q, want %q", out.String(), tc.progress)
			}
		})
	}
}
