// SPDX-License-Identifier: Apache-2.0

// Package gobuild builds static Go programs, of this module and of the modules under hack/.
package gobuild

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Options say what to build.
type Options struct {
	// Dir is the folder of the go.mod file.
	Dir string
	// Packages are import paths, or "tool" for all tools of the module.
	Packages []string
	// Output is a folder (with a trailing slash, made if missing) or the file to write.
	Output string
	// LDFlags are added to "-s -w".
	LDFlags string
	// Tags are build tags.
	Tags []string
}

// Build runs go build with cgo off, so that the programs run in an image without a C library. The error of a failed
// build carries the compiler's output.
func Build(ctx context.Context, o Options) error {
	if dir, isDir := strings.CutSuffix(o.Output, "/"); isDir {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", strings.TrimSpace("-s -w " + o.LDFlags), "-o", o.Output}
	if len(o.Tags) > 0 {
		args = append(args, "-tags", strings.Join(o.Tags, ","))
	}
	cmd := exec.CommandContext(ctx, "go", append(args, o.Packages...)...)
	cmd.Dir = o.Dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("building %s in %s: %w\n%s", strings.Join(o.Packages, " "), o.Dir, err, bytes.TrimSpace(output.Bytes()))
	}
	return nil
}
