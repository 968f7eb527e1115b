# localrank on the CPU.
#
#   docker build -t localrank .
#   docker run --rm -v "$PWD:/data" localrank analyze my_run --data points.pt -o ranks.csv
#
# pip may pick torch with CUDA, which takes several GB: pass the index of its builds for the CPU with
# --build-arg INDEX=URL.
FROM python:3.11-slim
ARG INDEX=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY localrank_cli localrank_cli
RUN pip install --no-cache-dir --constraint constraints.txt ${INDEX:+--extra-index-url "$INDEX"} '.[plot,parquet]' \
    && useradd --create-home user
USER user
WORKDIR /data
ENTRYPOINT ["localrank"]
