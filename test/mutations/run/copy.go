// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/onsi/ginkgo/v2/types"

	"github.com/registry-cache/extension/test/mutations"
)

// maxMessage is the length of the recorded part of a failure, in bytes.
const maxMessage = 400

// trimpath removes the folder of the checkout from the keys of Go's build cache. Each run uses a new folder, so without
// it every run would compile everything.
const trimpath = "-trimpath"

// copied is a Git worktree of HEAD to which mutations are applied. It is not safe for concurrent use.
type copied struct {
	dir     string   // the root of the worktree
	commit  string   // the checked-out commit, 12 hexadecimal digits
	wrapper []string // the command of -exec, with its arguments
	repairs bool     // whether repair installs the product of HEAD
	used    bool     // whether the cluster runs a mutated product
}

func newCopy(ctx context.Context, wrapper []string, repairs bool) (*copied, error) {
	commit, err := command(ctx, ".", nil, "git", "rev-parse", "--short=12", "HEAD")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "mutations-")
	if err != nil {
		return nil, err
	}
	c := &copied{dir: filepath.Join(dir, "checkout"), commit: strings.TrimSpace(string(commit)), wrapper: wrapper, repairs: repairs}
	if _, err := command(ctx, ".", nil, "git", "worktree", "add", "--detach", c.dir, c.commit); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return c, nil
}

// remove deletes the worktree. It uses no context of the caller, because it must also work after an interrupt.
func (c *copied) remove(ctx context.Context) error {
	_, err := command(context.WithoutCancel(ctx), ".", nil, "git", "worktree", "remove", "--force", c.dir)
	return errors.Join(err, os.RemoveAll(filepath.Dir(c.dir)))
}

// repair installs the product of HEAD on the cluster if the cluster runs a mutated product. With -repair=false it does
// nothing.
func (c *copied) repair(ctx context.Context) error {
	if !c.used || !c.repairs {
		return nil
	}
	_, err := command(context.WithoutCancel(ctx), c.dir, c.wrapper, "go", "run", "./test/testbed/cmd/testbed", "up")
	if err != nil {
		return fmt.Errorf("installing the product of HEAD again (\"make kind-up\" does the same): %w", err)
	}
	return nil
}

// try applies a mutation, runs its test and its spec, and reverts the mutation. An error means that there is no result:
// the product did not compile, or the test or the spec did not run.
func (c *copied) try(ctx context.Context, m mutations.Mutation, tests, specs bool) (r result, err error) {
	changed, err := m.Mutate(c.dir)
	if err != nil {
		return result{}, err
	}
	defer func() {
		// Without the context, so that an interrupt cannot leave the worktree mutated.
		_, undo := command(context.WithoutCancel(ctx), c.dir, nil, "git", "checkout", "--quiet", "--", ".")
		err = errors.Join(err, undo)
	}()
	for file, content := range changed {
		if err := os.WriteFile(filepath.Join(c.dir, filepath.FromSlash(file)), content, 0o644); err != nil {
			return result{}, err
		}
	}
	if _, err := command(ctx, c.dir, nil, "go", "build", trimpath, "./cmd/...", "./pkg/..."); err != nil {
		return result{}, fmt.Errorf("compiling the mutated product: %w", err)
	}
	if m.Test != nil && tests {
		if r.Test, err = c.test(ctx, *m.Test); err != nil {
			return result{}, err
		}
	}
	if m.Spec != nil && specs {
		if r.Spec, err = c.spec(ctx, *m.Spec); err != nil {
			return result{}, err
		}
	}
	return r, nil
}

// test runs a Go test, which must fail.
func (c *copied) test(ctx context.Context, want mutations.Test) (outcome, error) {
	began := time.Now()
	output, err := command(ctx, c.dir, nil, "go", "test", trimpath, "-count=1", "-timeout=5m", "-run", "^"+want.Name+"$", want.Package)
	o := outcome{Name: want.Package + " " + want.Name, Commit: c.commit, Seconds: seconds(began)}
	if err == nil {
		return o, nil
	}
	if ctx.Err() != nil {
		return o, ctx.Err()
	}
	if !bytes.Contains(output, []byte("--- FAIL: "+want.Name)) && !bytes.Contains(output, []byte("panic: test timed out")) {
		return o, fmt.Errorf("the test did not run: %w", err)
	}
	o.judge(want.Message, string(output))
	return o, nil
}

// spec runs a spec, which must fail. The suite first installs the mutated product on the cluster.
func (c *copied) spec(ctx context.Context, want mutations.Spec) (outcome, error) {
	binary, report := filepath.Join(c.dir, "e2e.test"), filepath.Join(c.dir, "report.json")
	if _, err := command(ctx, c.dir, nil, "go", "test", trimpath, "-c", "-o", binary, "./test/e2e"); err != nil {
		return outcome{}, err
	}
	if err := os.Remove(report); err != nil && !errors.Is(err, os.ErrNotExist) {
		return outcome{}, err
	}
	c.used = true
	began := time.Now()
	// The exit code does not distinguish a failed spec from a failed set-up, but the JSON report does.
	output, runErr := command(ctx, filepath.Join(c.dir, "test", "e2e"), c.wrapper, binary, "-test.timeout=30m", "-ginkgo.no-color",
		"-ginkgo.focus="+regexp.QuoteMeta(want.Text)+"$", "-ginkgo.json-report="+report)
	if ctx.Err() != nil {
		return outcome{}, ctx.Err()
	}
	content, err := os.ReadFile(report)
	if err != nil {
		return outcome{}, fmt.Errorf("reading the report of the suite: %w: %w", err, runErr)
	}
	var suites []types.Report
	if err := json.Unmarshal(content, &suites); err != nil {
		return outcome{}, fmt.Errorf("decoding the report of the suite: %w", err)
	}
	o := outcome{Name: want.Text, Commit: c.commit, Seconds: seconds(began)}
	found := false
	for _, suite := range suites {
		for _, spec := range suite.SpecReports {
			switch {
			case spec.LeafNodeType.Is(types.NodeTypesForSuiteLevelNodes) && spec.Failed():
				return outcome{}, fmt.Errorf("the suite failed before the spec: %s: %s\n%s", spec.LeafNodeType, spec.Failure.Message, tail(output))
			case spec.FullText() == want.Text:
				found = true
				if spec.Failed() {
					o.judge(want.Message, failure(spec))
				}
			}
		}
	}
	if !found {
		return outcome{}, fmt.Errorf("there is no spec %q", want.Text)
	}
	return o, nil
}

// failure returns the text of the last By before the failure of a spec, and the failure message.
func failure(spec types.SpecReport) string {
	text := spec.Failure.Message
	steps := spec.SpecEvents.WithType(types.SpecEventByStart)
	if len(steps) > 0 {
		text = steps[len(steps)-1].Message + ": " + text
	}
	return text
}

// judge records a failure with the part of its text around want, and whether the text contains want. Runs of white
// space count as one space.
func (o *outcome) judge(want, text string) {
	text = strings.Join(strings.Fields(text), " ")
	want = strings.Join(strings.Fields(want), " ")
	o.Failed, o.Right = true, strings.Contains(text, want)
	at := max(strings.Index(text, want), 0)
	begin := max(0, at-maxMessage/2)
	o.Message = strings.ToValidUTF8(text[begin:min(len(text), begin+maxMessage)], "")
}

func seconds(began time.Time) int { return int(time.Since(began).Round(time.Second).Seconds()) }

// command runs a command in a folder and returns its standard output and standard error. The error contains the end of
// both.
func command(ctx context.Context, dir string, wrapper []string, name string, args ...string) ([]byte, error) {
	words := append(slices.Clone(wrapper), append([]string{name}, args...)...)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	// An interrupted suite still runs its clean-up, which a killed one cannot.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 3 * time.Minute
	output, err := cmd.CombinedOutput()
	if err != nil {
		return output, fmt.Errorf("%s: %w\n%s", strings.Join(words, " "), err, tail(output))
	}
	return output, nil
}

// tail returns the last 40 lines of an output.
func tail(output []byte) []byte {
	lines := bytes.Split(bytes.TrimSpace(output), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-40):], []byte("\n"))
}
