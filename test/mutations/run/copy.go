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

// maxMessage is what is kept of a failure, in bytes.
const maxMessage = 400

// trimpath lets Go's build cache serve the copy, whose folder is another one each time.
const trimpath = "-trimpath"

// copied is a working tree of HEAD in which the product is broken.
type copied struct {
	dir, commit string
	wrapper     []string
	repairs     bool
	used        bool // the cluster has a broken product
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

// remove also works after an interrupt, hence without its context.
func (c *copied) remove() error {
	_, err := command(context.Background(), ".", nil, "git", "worktree", "remove", "--force", c.dir)
	return errors.Join(err, os.RemoveAll(filepath.Dir(c.dir)))
}

// repair installs the product of HEAD again if a broken one was installed, unless it is wanted.
func (c *copied) repair() error {
	if !c.used || !c.repairs {
		return nil
	}
	_, err := command(context.Background(), c.dir, c.wrapper, "go", "run", "./test/testbed/cmd/testbed", "up")
	if err != nil {
		return fmt.Errorf("installing the product again; \"make kind-up\" does it, too: %w", err)
	}
	return nil
}

// try breaks the product, runs what has to notice, and undoes the breakage. An error says that nothing is known.
func (c *copied) try(ctx context.Context, m mutations.Mutation, tests, specs bool) (r result, err error) {
	changed, err := m.Mutate(c.dir)
	if err != nil {
		return result{}, err
	}
	defer func() {
		// Not with a context: the next mutation starts with what is there.
		_, undo := command(context.Background(), c.dir, nil, "git", "checkout", "--quiet", "--", ".")
		err = errors.Join(err, undo)
	}()
	for file, content := range changed {
		if err := os.WriteFile(filepath.Join(c.dir, filepath.FromSlash(file)), content, 0o644); err != nil {
			return result{}, err
		}
	}
	if _, err := command(ctx, c.dir, nil, "go", "build", trimpath, "./cmd/...", "./pkg/..."); err != nil {
		return result{}, fmt.Errorf("it must compile: %w", err)
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

// test runs a Go test that has to fail.
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

// spec runs a spec that has to fail, on the cluster, which gets the broken product.
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
	// The command fails when a spec does; the report tells.
	output, runErr := command(ctx, filepath.Join(c.dir, "test", "e2e"), c.wrapper, binary, "-test.timeout=30m", "-ginkgo.no-color",
		"-ginkgo.focus="+regexp.QuoteMeta(want.Text)+"$", "-ginkgo.json-report="+report)
	if ctx.Err() != nil {
		return outcome{}, ctx.Err()
	}
	content, err := os.ReadFile(report)
	if err != nil {
		return outcome{}, fmt.Errorf("the suite has left no report: %w: %w", err, runErr)
	}
	var suites []types.Report
	if err := json.Unmarshal(content, &suites); err != nil {
		return outcome{}, fmt.Errorf("reading the report of the suite: %w", err)
	}
	o := outcome{Name: want.Text, Commit: c.commit, Seconds: seconds(began)}
	found := false
	for _, suite := range suites {
		for _, spec := range suite.SpecReports {
			switch {
			case spec.LeafNodeType.Is(types.NodeTypesForSuiteLevelNodes) && spec.Failed():
				return outcome{}, fmt.Errorf("the suite did not get to the spec: %s: %s\n%s", spec.LeafNodeType, spec.Failure.Message, tail(output))
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

// failure is what a spec says about its failure: the latest of what By has announced, and the message.
func failure(spec types.SpecReport) string {
	text := spec.Failure.Message
	steps := spec.SpecEvents.WithType(types.SpecEventByStart)
	if len(steps) > 0 {
		text = steps[len(steps)-1].Message + ": " + text
	}
	return text
}

// judge notes a failure, and whether it is the expected one.
func (o *outcome) judge(want, text string) {
	text = strings.Join(strings.Fields(text), " ")
	want = strings.Join(strings.Fields(want), " ")
	o.Failed, o.Right = true, strings.Contains(text, want)
	at := max(strings.Index(text, want), 0)
	begin := max(0, at-maxMessage/2)
	o.Message = strings.ToValidUTF8(text[begin:min(len(text), begin+maxMessage)], "")
}

func seconds(began time.Time) int { return int(time.Since(began).Round(time.Second).Seconds()) }

// command runs a command in a folder and returns what it prints. The error has the end of that.
func command(ctx context.Context, dir string, wrapper []string, name string, args ...string) ([]byte, error) {
	words := append(slices.Clone(wrapper), append([]string{name}, args...)...)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	// The suite undoes what it has made when it is interrupted.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 3 * time.Minute
	output, err := cmd.CombinedOutput()
	if err != nil {
		return output, fmt.Errorf("%s: %w\n%s", strings.Join(words, " "), err, tail(output))
	}
	return output, nil
}

// tail returns the end of an output.
func tail(output []byte) []byte {
	lines := bytes.Split(bytes.TrimSpace(output), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-40):], []byte("\n"))
}
