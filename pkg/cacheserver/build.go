// SPDX-License-Identifier: Apache-2.0

package cacheserver

import (
	"runtime/debug"
	"time"
)

// earliestBuild is earlier than all builds of this program. It is used for builds without version control.
var earliestBuild = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// buildTime returns the time of the commit from which the program was built. A system clock with an earlier time is wrong.
func buildTime() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return earliestBuild
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.time" {
			if t, err := time.Parse(time.RFC3339, setting.Value); err == nil {
				return t
			}
		}
	}
	return earliestBuild
}
