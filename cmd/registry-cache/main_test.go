// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCommandErrors(t *testing.T) {
	t.Parallel()
	invalid := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(invalid, []byte("upstream: {host: docker.io}"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"serve"}, "--config: required, must be the path of the configuration file"},
		{[]string{"serve", "--config", "/nonexistent"}, "reading configuration: stat /nonexistent: no such file or directory"},
		{[]string{"serve", "--config", invalid}, invalid + ": validating configuration: upstream.remoteURL: must be set"},
		{[]string{"serve", "more"}, `unknown command "more"`},
		{[]string{"inspect", "--root", "/nonexistent"}, "scanning the volume: directory /nonexistent does not exist"},
		{[]string{"inspect", "--root", ""}, "--root: must be the directory of the volume, for example /var/lib/registry"},
		{[]string{"inspect", "--config", "/nonexistent"}, "reading configuration: stat /nonexistent: no such file or directory"},
		{[]string{"inspect", "-o", "yaml"}, `--output: unsupported value "yaml": supported values: "table", "json"`},
		{[]string{"inspect", "--high-watermark", "101"}, "invalid --high-watermark, --low-watermark or --ttl: storage.highWatermark: 101 must be a percentage of the volume from 1 to 100"},
		{[]string{"inspect", "--low-watermark", "90"}, "invalid --high-watermark, --low-watermark or --ttl: storage.lowWatermark: 90 must be a percentage of the volume from 0 to 89, below highWatermark, which is 90"},
		{[]string{"inspect", "--ttl", "-1s"}, "invalid --high-watermark, --low-watermark or --ttl: garbageCollection.ttl: -1s must not be negative"},
		{[]string{"inspect", "more"}, `unknown command "more"`},
		{[]string{"other"}, `unknown command "other"`},
	} {
		cmd := command()
		cmd.SetArgs(test.args)
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%v: got error %v, want %s", test.args, err, test.want)
		}
	}
}
