// Time lines: one sample a second, the last two minutes.

const SAMPLES = 120;

export class Chart {
  constructor(canvas, colours) {
    this.canvas = canvas;
    this.colours = colours;
    this.series = colours.map(() => []);
    this.label = canvas.getAttribute("aria-label");
  }

  add(...values) {
    values.forEach((value, index) => {
      this.series[index].push(value);
      if (this.series[index].length > SAMPLES) this.series[index].shift();
    });
    this.canvas.setAttribute("aria-label", `${this.label}; now ${values.map((value) => Math.round(value)).join(", ")}`);
    this.draw();
  }

  draw() {
    const { canvas } = this;
    const ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const colour = (name) => {  // a canvas does not know light-dark(), whoever styles it does
      canvas.style.color = `var(${name})`;
      return getComputedStyle(canvas).color;
    };
    const most = Math.max(1, ...this.series.flat());
    const x = (index) => (index / (SAMPLES - 1)) * width;
    const y = (value) => height - 2 - (value / most) * (height - 14);
    context.fillStyle = colour("--quiet");
    context.font = "10px system-ui, sans-serif";
    context.fillText(`${Math.round(most)}`, 2, 9);
    this.series.forEach((values, number) => {
      const first = SAMPLES - values.length;
      context.strokeStyle = context.fillStyle = colour(this.colours[number]);
      context.lineWidth = 1.5;
      context.beginPath();
      values.forEach((value, index) => context.lineTo(x(first + index), y(value)));
      context.stroke();
      if (this.series.length === 1 && values.length) {
        context.lineTo(width, height);
        context.lineTo(x(first), height);
        context.globalAlpha = 0.15;
        context.fill();
        context.globalAlpha = 1;
      }
    });
  }
}
