// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// local is an engine whose only node, "n", is this machine.
type local struct {
	// cut is how many bytes of standard input arrive, if it is not negative.
	cut int64
}

func (l local) Run(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	at := slices.Index(args, "n")
	if args[0] != "exec" || at < 0 {
		return nil, fmt.Errorf("unexpected command %q", args)
	}
	if interactive := slices.Contains(args[:at], "--interactive"); interactive != (stdin != nil) {
		return nil, fmt.Errorf("command %q, with standard input %t", args, stdin != nil)
	}
	cmd := exec.CommandContext(ctx, args[at+1], args[at+2:]...)
	if stdin != nil && l.cut >= 0 {
		stdin = io.LimitReader(stdin, l.cut)
	}
	cmd.Stdin = stdin
	return cmd.Output()
}

func TestWriteFile(t *testing.T) {
	t.Parallel()
	node := Node{Name: "n", engine: local{cut: -1}}
	file := filepath.Join(t.TempDir(), "new folder", "it's")
	for _, content := range []string{"first\n", "second, without a line end", ""} {
		if err := node.WriteFile(t.Context(), file, 0o640, []byte(content)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(file)
		if err != nil || string(got) != content {
			t.Errorf("read %q, %v, want %q", got, err, content)
		}
		if info, err := os.Stat(file); err != nil || info.Mode() != 0o640 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(file)); err != nil || len(entries) != 1 {
		t.Errorf("left beside the file: %v, %v", entries, err)
	}
	if err := node.WriteFile(t.Context(), "relative", 0o640, nil); err == nil {
		t.Error("a relative path was accepted")
	}
}

func TestWriteFileKeepsTheOldOneWhenContentIsCut(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	node := Node{Name: "n", engine: local{cut: 4}}
	err := node.WriteFile(t.Context(), file, 0o600, []byte("new content"))
	if _, failed := errors.AsType[*exec.ExitError](err); !failed {
		t.Errorf("error %v, want one of the script", err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "old" {
		t.Errorf("read %q, %v, want the old content", got, err)
	}
	if entries, err := os.ReadDir(filepath.Dir(file)); err != nil || len(entries) != 1 {
		t.Errorf("left beside the file: %v, %v", entries, err)
	}
}

func TestScriptStopsAtTheFirstError(t *testing.T) {
	t.Parallel()
	node := Node{Name: "n", engine: local{cut: -1}}
	out, err := node.Script(t.Context(), bytes.NewReader([]byte("in")), `printf '%s %s ' "$1" "$2"; cat; false; echo more`, "a b", "c")
	if err == nil || string(out) != "a b c in" {
		t.Errorf("output %q, error %v", out, err)
	}
}

func TestHostsScriptReplacesItsOwnLines(t *testing.T) {
	t.Parallel()
	node := Node{Name: "n", engine: local{cut: -1}}
	file := filepath.Join(t.TempDir(), "hosts")
	const engines = "127.0.0.1\tlocalhost\n10.89.0.3\tn\n"
	if err := os.WriteFile(file, []byte(engines), 0o644); err != nil {
		t.Fatal(err)
	}
	script := strings.ReplaceAll(hostsScript, "/etc/hosts", file)
	for _, entries := range []map[string][]string{
		{"10.89.0.7": {"docker.io"}},
		{"10.89.0.8": {"quay.io", "docker.io"}, "10.89.0.9": {"ghcr.io"}},
		{},
	} {
		block := hostsBlock(entries)
		if _, err := node.Script(t.Context(), strings.NewReader(block), script, hostsBegin, hostsEnd); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != engines+block {
			t.Errorf("read %q, %v, want %q", got, err, engines+block)
		}
	}
}
