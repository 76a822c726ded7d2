// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// shell is an engine whose program is a shell, which is all that Run and Stream depend on.
func shell(settings ...string) *Engine { return &Engine{Name: "sh", extra: settings} }

func TestRun(t *testing.T) {
	t.Parallel()
	out, err := shell("ANSWER=42").Run(t.Context(), strings.NewReader("from stdin"), "-c", `cat; echo " $ANSWER"; echo noise >&2`)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(out), "from stdin 42\n"; got != want {
		t.Errorf("output %q, want %q", got, want)
	}
}

func TestRunErrorTellsCommandAndStderr(t *testing.T) {
	t.Parallel()
	_, err := shell().Run(t.Context(), nil, "-c", `echo out; echo "no such container" >&2; exit 3`)
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 3 {
		t.Fatalf("error %v, want exit status 3", err)
	}
	for _, want := range []string{"running sh -c", "no such container"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
}

func TestRunKeepsTheEndOfALongStderr(t *testing.T) {
	t.Parallel()
	_, err := shell().Run(t.Context(), nil, "-c", `i=0; while [ $i -lt 3000 ]; do echo "line $i" >&2; i=$((i+1)); done; exit 1`)
	if err == nil || !strings.HasSuffix(err.Error(), "line 2999") {
		t.Fatal("the error does not end with the last line of stderr")
	}
	if len(err.Error()) > maxStderr+2*maxShownArgs {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
}

func TestRunBoundsOutput(t *testing.T) {
	t.Parallel()
	b := &boundedBuffer{limit: 10}
	if err := shell().Stream(t.Context(), nil, b, "-c", "yes"); err == nil {
		t.Error("no error for endless output")
	}
	if b.kept.Len() > 10 {
		t.Errorf("kept %d bytes", b.kept.Len())
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted by the user")
	cancel(interrupted)
	if _, err := shell().Run(ctx, nil, "-c", "sleep 60"); !errors.Is(err, interrupted) {
		t.Errorf("error %v, want %v", err, interrupted)
	}
}

func TestEnvLeavesProxiesOut(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://proxy.invalid")
	t.Setenv("no_proxy", "*")
	t.Setenv("CONTAINERS_CONF", "of the user")
	env := shell("CONTAINERS_CONF=ours").Env()
	for _, pair := range env {
		if name, _, _ := strings.Cut(pair, "="); isProxy(name) {
			t.Errorf("environment has %s", pair)
		}
	}
	if user, ours := slices.Index(env, "CONTAINERS_CONF=of the user"), slices.Index(env, "CONTAINERS_CONF=ours"); ours < user {
		t.Errorf("CONTAINERS_CONF: ours at %d, before the user's at %d", ours, user)
	}
}
